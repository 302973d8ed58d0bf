//! Taking back what was done of a plan that failed midway.
//!
//! A device, LUN, target or group that was removed cannot be given back as it was: it had sessions, state, reservations. A plan
//! that has removed one is left where it failed.

use kshim::kobject::tree::TreeOps;

use super::access::{join, read_text};
use super::op::Op;

/// What takes an operation back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inverse {
    /// This operation.
    Op(Box<Op>),
    /// Nothing needs to be done.
    Nothing,
    /// It cannot be taken back.
    None,
}

/// What would take an operation back. Ask before it is done: the value that an attribute has is the one to give back.
///
/// Context: may sleep.
pub(crate) fn inverse(op: &Op, tree: &dyn TreeOps) -> Inverse {
    let back = match op.clone() {
        Op::SetAttr { object, attr, .. } => {
            let text = read_text(tree, &join(&object.dir(), &attr));
            // What cannot be read is a command, not a value.
            let Ok(text) = text else {
                return Inverse::Nothing;
            };
            Op::SetAttr {
                object,
                attr,
                value: text.lines().next().unwrap_or_default().to_owned(),
            }
        }
        Op::MoveInitiator {
            tgt,
            group,
            initiator,
            to,
        } => Op::MoveInitiator {
            tgt,
            group: to,
            initiator,
            to: group,
        },
        Op::AddInitiator {
            tgt,
            group,
            initiator,
        } => Op::RemoveInitiator {
            tgt,
            group,
            initiator,
        },
        Op::RemoveInitiator {
            tgt,
            group,
            initiator,
        } => Op::AddInitiator {
            tgt,
            group,
            initiator,
        },
        op => match inverse_of_addition(op) {
            Some(back) => back,
            None => return Inverse::None,
        },
    };
    Inverse::Op(Box::new(back))
}

fn inverse_of_addition(op: Op) -> Option<Op> {
    Some(match op {
        Op::OpenDevice {
            handler, device, ..
        } => Op::CloseDevice { handler, device },
        Op::AddDriverAttr {
            driver,
            attr,
            value,
        } => Op::RemoveDriverAttr {
            driver,
            attr,
            value,
        },
        Op::RemoveDriverAttr {
            driver,
            attr,
            value,
        } => Op::AddDriverAttr {
            driver,
            attr,
            value,
        },
        Op::AddTargetAttr { tgt, attr, value } => Op::RemoveTargetAttr { tgt, attr, value },
        Op::RemoveTargetAttr { tgt, attr, value } => Op::AddTargetAttr { tgt, attr, value },
        Op::AddTarget { tgt, .. } => Op::RemoveTarget { tgt },
        Op::AddGroup { tgt, group } => Op::RemoveGroup { tgt, group },
        Op::AddLun {
            tgt, group, lun, ..
        } => Op::RemoveLun { tgt, group, lun },
        Op::AddDeviceGroup { group } => Op::RemoveDeviceGroup { group },
        Op::AddDeviceGroupDevice { group, device } => Op::RemoveDeviceGroupDevice { group, device },
        Op::AddTargetGroup { group, tgroup } => Op::RemoveTargetGroup { group, tgroup },
        Op::AddTargetGroupTarget {
            group,
            tgroup,
            target,
        } => Op::RemoveTargetGroupTarget {
            group,
            tgroup,
            target,
        },
        _ => return None,
    })
}
