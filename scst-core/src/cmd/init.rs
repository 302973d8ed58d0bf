//! Reception: LUN translation, limits, CDB lookup, ordering number.
//!
//! C source: `scst_rx_cmd`, `scst_cmd_init_done`, `__scst_init_cmd`, `scst_translate_lun` of `scst/src/scst_targ.c`

use super::shared::{ABORTED, CmdShared};
use super::{CdbBuf, Cmd, CmdMarks, CmdState, ExecCx, Next, SgvHeld};
use crate::acg::BlackHole;
use crate::blocking::BlockTicket;
use crate::cdb::{self, CdbError, CdbFlags, CdbInfo};
use crate::consts::{DataDirection, QueueType, SamStatus};
use crate::event::Kind;
use crate::local_cmd;
use crate::lun::Lun;
use crate::order::{OrderPolicy, OrderTicket};
use crate::sense;
use crate::session::Session;
use kshim::scatterlist::SGTable;
use kshim::sync::rcu;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What an invalid LUN structure unpacks to.
pub(crate) const NO_SUCH_LUN: u64 = u64::MAX;

impl Cmd {
    pub(crate) fn new(shared: Arc<CmdShared>, sess: Arc<Session>) -> Self {
        Self {
            shared,
            generation: 0,
            state: CmdState::Free,
            sess,
            tgt_dev: None,
            lun: 0,
            tag: 0,
            queue_type: QueueType::Simple,
            cdb: CdbBuf::default(),
            info: None,
            data_direction: DataDirection::Unknown,
            expected_data_direction: DataDirection::Unknown,
            expected_set: false,
            expected_transfer_len: 0,
            expected_out_transfer_len: 0,
            bufflen: 0,
            data_len: 0,
            lba: 0,
            resp_data_len: None,
            write_len: 0,
            resid_possible: false,
            resid: 0,
            bidi_out_resid: 0,
            status: SamStatus::Good,
            completed: false,
            sense: Vec::new(),
            sg: SGTable::new(),
            sgv: SgvHeld::default(),
            ticket: OrderTicket::default(),
            block_ticket: BlockTicket::default(),
            copy: None,
            marks: CmdMarks::default(),
            state_since: None,
            tgt_priv: 0,
            dh_priv: None,
        }
    }

    /// Begins a new use of this object. Everything that a previous command may have left is reset here or was reset
    /// when it finished ([`Cmd::finish`]).
    #[inline]
    pub(crate) fn begin(&mut self, lun_bytes: [u8; 8], cdb: &[u8; 16], extended: &[u8]) {
        debug_assert_eq!(self.state, CmdState::Free);
        self.generation = self.generation.wrapping_add(1);
        self.state = CmdState::InitWait;
        self.state_since = None;
        self.cdb.set(cdb, extended);
        self.queue_type = QueueType::Simple;
        self.info = None;
        self.data_direction = DataDirection::Unknown;
        self.expected_data_direction = DataDirection::Unknown;
        self.expected_set = false;
        self.expected_transfer_len = 0;
        self.expected_out_transfer_len = 0;
        self.bufflen = 0;
        self.data_len = 0;
        self.lba = 0;
        self.resp_data_len = None;
        self.write_len = 0;
        self.resid_possible = false;
        self.resid = 0;
        self.bidi_out_resid = 0;
        self.status = SamStatus::Good;
        self.completed = false;
        self.marks = CmdMarks::default();
        debug_assert!(self.ticket.is_settled() && !self.block_ticket.is_on_device());
        self.ticket = OrderTicket::default();
        self.block_ticket = BlockTicket::default();
        self.lun = Lun::unpack(&lun_bytes).map_or(NO_SUCH_LUN, Lun::get);
        let [opcode, ..] = *cdb;
        self.shared.begin(self.lun, opcode);
    }

    /// The transport's part of the command is set: process it. From now on task management finds it. Context: the
    /// session's home.
    #[doc(alias = "scst_cmd_init_done")]
    #[inline]
    pub fn init_done(mut self: Box<Self>, cx: &mut ExecCx<'_>) {
        debug_assert_eq!(self.state, CmdState::InitWait);
        self.shared.publish(self.generation);
        self.set_state(CmdState::Init);
        self.process(cx);
    }

    /// Continues the command from the state it is in. Context: its home (or, for execution, a pool thread).
    #[doc(alias = "scst_process_active_cmd")]
    pub fn process(self: Box<Self>, cx: &mut ExecCx<'_>) {
        let mut next = Next::Same(self);
        loop {
            next = match next {
                Next::Same(cmd) => cmd.step(cx),
                Next::NeedThread(cmd) => {
                    let core = &cmd.sess.core;
                    let threads = match &cmd.tgt_dev {
                        _ if cmd.copy.is_some() => Arc::clone(&core.copy_mgr.threads),
                        Some(t) => Arc::clone(&t.threads.lock()),
                        None => Arc::clone(&core.main_threads),
                    };
                    match threads.queue_cmd(cmd) {
                        Ok(()) => Next::Stop,
                        Err(cmd) => cmd.no_threads(),
                    }
                }
                Next::Stop => match cx.ready.pop_front() {
                    Some(cmd) => Next::Same(cmd),
                    None => return,
                },
            }
        }
    }

    /// The pool is stopped, which only happens to one that nobody uses any more.
    #[cold]
    fn no_threads(mut self: Box<Self>) -> Next {
        kshim::pr_err!("The thread pool is stopped: {self:?}");
        self.set_sense(sense::INTERNAL_FAILURE);
        self.set_state(CmdState::PreDevDone);
        Next::Same(self)
    }

    #[inline]
    fn step(self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        match self.state {
            CmdState::Init => self.init(cx),
            CmdState::Parse => self.parse(),
            CmdState::PrepareSpace => self.prepare_space(),
            CmdState::PreprocessingDone => self.preprocessing_done(cx),
            CmdState::RdyToXfer => self.rdy_to_xfer(cx),
            CmdState::TgtPreExec => self.tgt_pre_exec(),
            CmdState::ExecCheckSn => self.exec_check_sn(),
            CmdState::ExecCheckBlocking => self.exec_check_blocking(cx),
            CmdState::LocalExec => self.local_exec(cx),
            CmdState::RealExec => self.real_exec(cx),
            CmdState::PreDevDone => self.pre_dev_done(),
            CmdState::ModeSelectChecks => self.mode_select_checks(),
            CmdState::DevDone => self.dev_done(cx),
            CmdState::PreXmitResp1 => self.pre_xmit_response1(cx),
            CmdState::PreXmitResp2 => self.pre_xmit_response2(cx),
            CmdState::XmitResp => self.xmit_response(cx),
            CmdState::Finished => self.finish(cx),
            // A passive state here is a bug of whoever resumed the command; ending it is the way out.
            CmdState::InitWait
            | CmdState::PreprocessingDoneCalled
            | CmdState::DataWait
            | CmdState::ExecWait
            | CmdState::XmitWait
            | CmdState::Free => {
                kshim::pr_err!("Command resumed in passive state: {self:?}");
                debug_assert!(false, "command resumed in a passive state");
                Next::Stop
            }
        }
    }

    /// The command gets no execution: it goes on with the steps that end it.
    #[doc(alias = "scst_set_cmd_abnormal_done_state")]
    pub(crate) fn set_abnormal_done_state(&mut self) {
        self.state = if self.marks.executed {
            CmdState::DevDone
        } else {
            CmdState::PreXmitResp1
        };
        self.completed |= !self.is_aborted();
    }

    /// CmdState::Init.
    #[inline]
    fn init(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        let leads = std::mem::take(&mut self.marks.leads_init_wait);
        if self.is_aborted() {
            if leads {
                self.sess.init_wait.pass_lead(cx);
            }
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        if self.marks.not_to_wait {
            return self.refuse_to_wait(leads, cx);
        }
        if !leads && self.sess.init_wait.is_busy() {
            return self.park_init(leads);
        }
        // The read section spans the lookup and the reference: suspension waits for a grace period between killing
        // the reference and counting, and removal of a LUN happens under suspension.
        let guard = rcu::read_lock();
        if !self.sess.core.cmd_ref.tryget_live() {
            drop(guard);
            return self.park_init(leads);
        }
        self.marks.counted = true;
        if leads {
            self.sess.init_wait.pass_lead(cx);
        }
        let Some(tgt_dev) = self.sess.luns.read(&guard).get(self.lun).cloned() else {
            drop(guard);
            self.no_such_lun();
            return Next::Same(self);
        };
        let count = tgt_dev.count_cmd();
        drop(guard);
        let limit = tgt_dev.dev.max_tgt_dev_commands.load(Ordering::Relaxed);
        let black_hole = tgt_dev.black_hole();
        self.tgt_dev = Some(tgt_dev);
        self.set_state(CmdState::Parse);
        if count >= limit {
            self.set_busy();
            self.ticket.bypass_aca();
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        self.pre_parse();
        if (black_hole != 0 && self.falls_into(black_hole)) || !self.check_aca() {
            self.set_write_len();
            self.set_abnormal_done_state();
        } else if !self.completed {
            self.set_sn();
        }
        Next::Same(self)
    }

    #[cold]
    fn no_such_lun(&mut self) {
        self.sess.core.events().tell(|| Kind::LunNotFound {
            lun: self.lun,
            initiator: self.sess.initiator_name().to_owned(),
            target: self.sess.tgt().name().to_owned(),
        });
        local_cmd::lun_not_supported(self);
        self.set_abnormal_done_state();
    }

    /// Whether the command is swallowed (`black_hole`): it is aborted then, and never answered.
    #[doc(alias = "acg_black_hole_type")]
    #[cold]
    fn falls_into(&mut self, black_hole: u8) -> bool {
        let data_only = black_hole >= BlackHole::DataCmd as u8;
        if data_only && self.data_direction == DataDirection::None {
            return false;
        }
        self.shared.set(ABORTED);
        true
    }

    #[cold]
    fn refuse_to_wait(mut self: Box<Self>, leads: bool, cx: &mut ExecCx<'_>) -> Next {
        if leads {
            self.sess.init_wait.pass_lead(cx);
        }
        self.set_busy();
        self.set_abnormal_done_state();
        Next::Same(self)
    }

    #[cold]
    fn park_init(self: Box<Self>, leads: bool) -> Next {
        let core = Arc::clone(&self.sess.core);
        core.park_init_cmd(self, leads)
            .map_or(Next::Stop, Next::Same)
    }

    /// Looks the CDB up. An unknown opcode is refused after the handler's parse, as the C code does.
    #[doc(alias = "scst_pre_parse")]
    #[inline]
    fn pre_parse(&mut self) {
        let Some(dev) = self.tgt_dev.as_ref().map(|t| &t.dev) else {
            return;
        };
        let handler = dev.handler();
        match cdb::get_cdb_info(
            handler.type_code(),
            handler.block_shift(),
            self.cdb.as_slice(),
        ) {
            Ok(info) => {
                self.data_direction = info.direction;
                self.bufflen = info.bufflen;
                self.data_len = info.data_len;
                self.lba = info.lba;
                self.info = Some(info);
            }
            Err(e) => {
                let (type_code, shift) = (handler.type_code(), handler.block_shift());
                let known = cdb::get_invalid_cdb_info(type_code, shift, self.cdb.as_slice());
                self.refuse_cdb(e, known);
            }
        }
    }

    /// Refuses a CDB of which only `known` could be decoded. An unknown opcode goes on to the handler's parse.
    #[cold]
    fn refuse_cdb(&mut self, e: CdbError, known: Option<CdbInfo>) {
        let Some(info) = known else { return };
        self.data_direction = info.direction;
        self.bufflen = info.bufflen;
        self.info = Some(info);
        match e {
            CdbError::UnknownOpcode => self.set_sense(sense::INVALID_OPCODE),
            CdbError::InvalidField { byte, bit } => self.set_invalid_field_in_cdb(byte, bit),
        }
        self.set_write_len();
        self.set_abnormal_done_state();
    }

    /// Data-out to take: what the CDB says, limited to what the initiator offers.
    #[doc(alias = "scst_set_write_len")]
    pub(super) fn set_write_len(&mut self) {
        if self.data_direction.has_write() {
            self.write_len = self.bufflen;
            if self.expected_set {
                self.write_len = self.write_len.min(self.expected_transfer_len);
            }
        }
    }

    /// Gives the command its place in the task set.
    #[doc(alias = "scst_cmd_set_sn")]
    #[inline]
    fn set_sn(&mut self) {
        let Some(tgt_dev) = &self.tgt_dev else { return };
        let flags = self.op_flags();
        let policy = OrderPolicy {
            restricted_reorder: tgt_dev.dev.control.queue_alg.load(Ordering::Relaxed) == 0,
            has_own_order_mgmt: false,
        };
        let on_done = policy.inc_expected_on_done(self.queue_type, self.naca());
        let implicit_hq = flags.contains(CdbFlags::IMPLICIT_HQ);
        self.queue_type = policy.queue_type(self.queue_type, implicit_hq);
        tgt_dev
            .order
            .set_sn(&mut self.ticket, self.queue_type, on_done);
    }

    /// Flags of the opcode; none for an unknown one.
    #[inline]
    pub(crate) fn op_flags(&self) -> CdbFlags {
        self.info.as_ref().map_or(CdbFlags::empty(), |i| i.flags)
    }

    /// Whether the CDB asks for an ACA on CHECK CONDITION.
    #[inline]
    pub(crate) fn naca(&self) -> bool {
        self.info.as_ref().is_some_and(|i| i.naca)
    }
}
