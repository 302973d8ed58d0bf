//! Why an operation failed, in the numbers and words that SCST's scstadmin has for it: exit codes and messages that scripts
//! know.

/// One kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// SCST's number for it, which becomes the exit code of some operations.
    pub code: u8,
    /// SCST's sentence for it; empty for a wrong call.
    pub text: &'static str,
}

macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        impl Failure {
            $($(#[$doc])* pub const $name: Failure = Failure { code: $code, text: $text };)*
        }
    };
}

failures! {
    /// A name or value is missing.
    BAD_CALL = 1, "";
    /// Something without a number of its own.
    FATAL = 2, "A fatal error occurred. See \"dmesg\" for more information.";
    /// An attribute that SCST does not have.
    SCST_BAD_ATTR = 7, "Bad attributes given for SCST.";
    /// An attribute that cannot be set.
    SCST_STATIC = 8, "SCST attribute specified is static";
    /// The store failed.
    SCST_SET = 9, "Failed to set a SCST attribute. See \"dmesg\" for more information.";
    /// There is no such handler.
    HND_NONE = 10, "No such handler exists.";
    /// An attribute that the handler does not have.
    HND_BAD_ATTR = 17, "Bad attributes given for handler.";
    /// An attribute that cannot be set.
    HND_STATIC = 18, "Handler attribute given is static.";
    /// The store failed.
    HND_SET = 19, "Failed to set handler attribute. See \"dmesg\" for more information.";
    /// There is no such device.
    DEV_NONE = 20, "No such device exists.";
    /// There is one already.
    DEV_EXISTS = 21, "Device already exists.";
    /// The device could not be opened.
    DEV_OPEN = 22, "Failed to open device. See \"dmesg\" for more information.";
    /// The device could not be closed.
    DEV_CLOSE = 23, "Failed to close device. See \"dmesg\" for more information.";
    /// An attribute that the device does not have or take.
    DEV_BAD_ATTR = 27, "Bad attributes given for device.";
    /// An attribute that cannot be set.
    DEV_STATIC = 28, "Device attribute specified is static.";
    /// The store failed.
    DEV_SET = 29, "Failed to set device attribute. See \"dmesg\" for more information.";
    /// There is no such driver.
    DRV_NONE = 30, "No such driver exists.";
    /// The driver makes no targets.
    DRV_NOT_VIRTUAL = 31, "Driver is incapable of dynamically adding/removing targets or attributes.";
    /// The attribute could not be added.
    DRV_ADD_ATTR = 35, "Failed to add driver dynamic attribute. See \"dmesg\" for more information.";
    /// The attribute could not be removed.
    DRV_REM_ATTR = 36, "Failed to remove driver dymanic attribute. See \"dmesg\" for more information.";
    /// An attribute that the driver does not have.
    DRV_BAD_ATTR = 37, "Bad attributes given for driver.";
    /// An attribute that cannot be set.
    DRV_STATIC = 38, "Driver attribute specified is static.";
    /// The store failed.
    DRV_SET = 39, "Failed to set driver attribute. See \"dmesg\" for more information.";
    /// There is no such target.
    TGT_NONE = 40, "No such target exists.";
    /// There is one already.
    TGT_EXISTS = 41, "Target already exists.";
    /// The target could not be added.
    TGT_ADD = 42, "Failed to add target. See \"dmesg\" for more information.";
    /// The target could not be removed.
    TGT_REM = 43, "Failed to remove target. See \"dmesg\" for more information.";
    /// The attribute could not be added.
    TGT_ADD_ATTR = 45, "Failed to add target dynamic attribute. See \"dmesg\" for more information.";
    /// The attribute could not be removed.
    TGT_REM_ATTR = 46, "Failed to remove target dynamic attribute. See \"dmesg\" for more information.";
    /// The target has no such LUN.
    TGT_NO_LUN = 47, "No such LUN exists.";
    /// The LUN could not be added to or removed from the target.
    TGT_ADD_LUN = 48, "Failed to add LUN to target. See \"dmesg\" for more information.";
    /// The target has this LUN already.
    TGT_LUN_EXISTS = 49, "LUN already exists.";
    /// An attribute that the target does not have or take.
    TGT_BAD_ATTR = 50, "Bad attributes given for target.";
    /// An attribute that cannot be set.
    TGT_STATIC = 51, "Target attribute specified is static.";
    /// The store failed.
    TGT_SET = 52, "Failed to set target attribute. See \"dmesg\" for more information.";
    /// The LUNs could not be removed.
    TGT_CLR_LUN = 53, "Failed to clear LUNs from target. See \"dmesg\" for more information.";
    /// Sessions of the target did not end.
    TGT_BUSY = 54, "Failed to remove target - target has active sessions. See \"dmesg\" for more information.";
    /// There is no such group.
    GRP_NONE = 60, "No such group exists.";
    /// There is one already.
    GRP_EXISTS = 61, "Group already exists.";
    /// The group could not be added.
    GRP_ADD = 62, "Failed to add group. See \"dmesg\" for more information.";
    /// The group could not be removed.
    GRP_REM = 63, "Failed to remove group. See \"dmesg\" for more information.";
    /// The group has no such LUN.
    GRP_NO_LUN = 70, "No such LUN exists.";
    /// The group has this LUN already.
    GRP_LUN_EXISTS = 71, "LUN already exists.";
    /// The LUN could not be added to the group.
    GRP_ADD_LUN = 72, "Failed to add LUN to group. See \"dmesg\" for more information.";
    /// The LUN could not be removed from the group.
    GRP_REM_LUN = 73, "Failed to remove LUN. See \"dmesg\" for more information.";
    /// The LUNs could not be removed.
    GRP_CLR_LUN = 75, "Failed to clear LUNs from group. See \"dmesg\" for more information.";
    /// An attribute that the group does not have.
    GRP_BAD_ATTR = 77, "Bad attributes given for group.";
    /// An attribute that cannot be set.
    GRP_STATIC = 78, "Group attribute specified is static.";
    /// The store failed.
    GRP_SET = 79, "Failed to set group attribute. See \"dmesg\" for more information.";
    /// There is no such initiator.
    INI_NONE = 80, "No such initiator exists.";
    /// There is one already.
    INI_EXISTS = 81, "Initiator already exists.";
    /// The initiator could not be added.
    INI_ADD = 82, "Failed to add initiator. See \"dmesg\" for more information.";
    /// The initiator could not be removed.
    INI_REM = 83, "Failed to remove initiator. See \"dmesg\" for more information.";
    /// The initiator could not be moved.
    INI_MOVE = 84, "Failed to move initiator. See \"dmesg\" for more information.";
    /// The initiators could not be removed.
    INI_CLEAR = 85, "Failed to clear initiators. See \"dmesg\" for more information.";
    /// The LUN has this device already.
    LUN_DEV_EXISTS = 91, "Device already exists for LUN.";
    /// The device could not be replaced.
    LUN_REPLACE = 96, "Failed to replace device for LUN. See \"dmesg\" for more information.";
    /// An attribute that the LUN does not have or take.
    LUN_BAD_ATTR = 97, "Bad attributes for LUN.";
    /// An attribute that cannot be set.
    LUN_STATIC = 98, "LUN attribute specified is static.";
    /// The store failed.
    LUN_SET = 99, "Failed to set LUN attribute. See \"dmesg\" for more information.";
    /// The store failed.
    INI_SET = 102, "Failed to set initiator attribute. See \"dmesg\" for more information.";
    /// The session did not close.
    SESSION_CLOSE = 111, "Failed to close session.";
    /// There is no such device group.
    DG_NONE = 120, "No such device group exists.";
    /// There is one already.
    DG_EXISTS = 121, "Device group already exists.";
    /// The group could not be added.
    DG_ADD = 122, "Failed to add device group. See \"dmesg\" for more information.";
    /// The group could not be removed.
    DG_REM = 123, "Failed to remove device group. See \"dmesg\" for more information.";
    /// Device groups as a whole have no such attribute.
    ALUA_BAD_ATTR = 125, "";
    /// An attribute that cannot be set.
    ALUA_STATIC = 126, "";
    /// The store failed.
    ALUA_SET = 127, "";
    /// The device could not be added to the group.
    DG_ADD_DEV = 130, "Failed to add device to device group. See \"dmesg\" for more information.";
    /// The device could not be removed from the group.
    DG_REM_DEV = 131, "Failed to remove device from device group. See \"dmesg\" for more information.";
    /// The device is not in the group.
    DG_NO_DEV = 132, "No such device in device group.";
    /// The device is in the group already.
    DG_DEV_EXISTS = 133, "Device already exists within device group.";
    /// The target group could not be added.
    DG_ADD_TG = 134, "Failed to add target group to device group. See \"dmesg\" for more information.";
    /// The target group could not be removed.
    DG_REM_TG = 135, "Failed to remove target group from device group. See \"dmesg\" for more information.";
    /// There is no such target group.
    TG_NONE = 136, "No such target group exists within device group.";
    /// There is one already.
    TG_EXISTS = 137, "Target group already exists within device group.";
    /// The device is in another group.
    DG_DEV_OTHER = 138, "Device is already assigned to another device group.";
    /// An attribute that the device group does not have.
    DG_BAD_ATTR = 140, "Bad attributes for device group.";
    /// An attribute that cannot be set.
    DG_STATIC = 141, "Device group attribute specified is static.";
    /// The store failed.
    DG_SET = 142, "Failed to set device group attribute. See \"dmesg\" for more information.";
    /// An attribute that the target group does not have.
    TG_BAD_ATTR = 150, "Bad attributes for target group.";
    /// An attribute that cannot be set.
    TG_STATIC = 151, "Target group attribute specified is static.";
    /// The store failed.
    TG_SET = 152, "Failed to set target group attribute. See \"dmesg\" for more information.";
    /// The target could not be added to the target group.
    TGT_GRP_ADD = 160, "Failed to add target to target group.";
    /// The target could not be removed from the target group.
    TGT_GRP_REM = 161, "Failed to remove target from target group.";
    /// The target group has no such target.
    TGT_GRP_NONE = 162, "No such target exists within target group.";
    /// The target group has this target already.
    TGT_GRP_EXISTS = 163, "Target already exists within target group.";
    /// An attribute that the target does not have there.
    TGT_GRP_BAD_ATTR = 170, "Bad attributes for target group target.";
    /// An attribute that cannot be set.
    TGT_GRP_STATIC = 171, "Target group target attribute specified is static.";
    /// The store failed.
    TGT_GRP_SET = 172, "Failed to set target group target attribute. See \"dmesg\" for more information.";
}
