//! Code points of the protocol: reasons, responses, functions, statuses.

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:expr,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $value,)+
        }

        impl $name {
            /// The code on the wire.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The item of a code on the wire, if it is assigned.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $(code if code == $value => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Why a PDU was rejected (RFC 7143 11.17.1).
    RejectReason {
        /// Data digest error; the PDU may be sent again (ERL > 0) or the task ends.
        #[doc(alias = "ISCSI_REASON_DATA_DIGEST_ERROR")]
        DataDigestError = 0x02,
        /// SNACK cannot be satisfied.
        #[doc(alias = "ISCSI_REASON_DATA_SNACK_REJECT")]
        SnackReject = 0x03,
        /// Protocol error, such as a SNACK for a status already acknowledged or a login in full feature phase.
        #[doc(alias = "ISCSI_REASON_PROTOCOL_ERROR")]
        ProtocolError = 0x04,
        /// The command is not supported here.
        #[doc(alias = "ISCSI_REASON_UNSUPPORTED_COMMAND")]
        CommandNotSupported = 0x05,
        /// Too many immediate commands.
        #[doc(alias = "ISCSI_REASON_IMMEDIATE_COMMAND_REJECT")]
        TooManyImmediate = 0x06,
        /// The task is in progress.
        #[doc(alias = "ISCSI_REASON_TASK_IN_PROGRESS")]
        TaskInProgress = 0x07,
        /// Invalid data acknowledgement.
        #[doc(alias = "ISCSI_REASON_INVALID_DATA_ACK")]
        InvalidDataAck = 0x08,
        /// A field of the PDU is invalid.
        #[doc(alias = "ISCSI_REASON_INVALID_PDU_FIELD")]
        InvalidPduField = 0x09,
        /// No resources for a long operation (no target transfer tag to be had).
        #[doc(alias = "ISCSI_REASON_OUT_OF_RESOURCES")]
        OutOfResources = 0x0a,
        /// Negotiation reset; deprecated.
        #[doc(alias = "ISCSI_REASON_NEGOTIATION_RESET")]
        NegotiationReset = 0x0b,
        /// The target waits for a logout.
        #[doc(alias = "ISCSI_REASON_WAITING_LOGOUT")]
        WaitingForLogout = 0x0c,
    }
}

codes! {
    /// Why an initiator logs out (RFC 7143 11.14.1).
    LogoutReason {
        /// Close the session with all its connections.
        CloseSession = 0,
        /// Close the connection that CID names.
        CloseConnection = 1,
        /// Remove the connection for recovery.
        RemoveForRecovery = 2,
    }
}

codes! {
    /// The target's answer to a logout (RFC 7143 11.15.1).
    LogoutResponse {
        /// Closed.
        Success = 0,
        /// No such connection.
        CidNotFound = 1,
        /// Connection recovery is not supported (with reason 2).
        RecoveryNotSupported = 2,
        /// Cleanup failed.
        CleanupFailed = 3,
    }
}

codes! {
    /// Task management functions (RFC 7143 11.5.1). 9 to 13 come with iSCSIProtocolLevel 2 (RFC 7144 4.2).
    TmfFunction {
        /// Abort the task that the referenced task tag names.
        #[doc(alias = "ISCSI_FUNCTION_ABORT_TASK")]
        AbortTask = 1,
        /// Abort all tasks of this session on the logical unit.
        #[doc(alias = "ISCSI_FUNCTION_ABORT_TASK_SET")]
        AbortTaskSet = 2,
        /// Clear the auto contingent allegiance.
        #[doc(alias = "ISCSI_FUNCTION_CLEAR_ACA")]
        ClearAca = 3,
        /// Abort all tasks on the logical unit.
        #[doc(alias = "ISCSI_FUNCTION_CLEAR_TASK_SET")]
        ClearTaskSet = 4,
        /// Reset the logical unit.
        #[doc(alias = "ISCSI_FUNCTION_LOGICAL_UNIT_RESET")]
        LogicalUnitReset = 5,
        /// Reset all logical units.
        #[doc(alias = "ISCSI_FUNCTION_TARGET_WARM_RESET")]
        TargetWarmReset = 6,
        /// Reset all logical units and end all sessions.
        #[doc(alias = "ISCSI_FUNCTION_TARGET_COLD_RESET")]
        TargetColdReset = 7,
        /// Move a task to this connection.
        #[doc(alias = "ISCSI_FUNCTION_TASK_REASSIGN")]
        TaskReassign = 8,
        /// QUERY TASK.
        QueryTask = 9,
        /// QUERY TASK SET.
        QueryTaskSet = 10,
        /// I_T NEXUS RESET.
        ITNexusReset = 11,
        /// QUERY ASYNCHRONOUS EVENT.
        QueryAsyncEvent = 12,
    }
}

codes! {
    /// The target's answer to a task management function (RFC 7143 11.6.1).
    TmfResponse {
        /// Function complete.
        #[doc(alias = "ISCSI_RESPONSE_FUNCTION_COMPLETE")]
        FunctionComplete = 0,
        /// The task does not exist.
        #[doc(alias = "ISCSI_RESPONSE_UNKNOWN_TASK")]
        TaskDoesNotExist = 1,
        /// The LUN does not exist.
        #[doc(alias = "ISCSI_RESPONSE_UNKNOWN_LUN")]
        LunDoesNotExist = 2,
        /// The task is still allegiant.
        #[doc(alias = "ISCSI_RESPONSE_TASK_ALLEGIANT")]
        TaskStillAllegiant = 3,
        /// Task allegiance reassignment is not supported.
        #[doc(alias = "ISCSI_RESPONSE_ALLEGIANCE_REASSIGNMENT_UNSUPPORTED")]
        ReassignmentNotSupported = 4,
        /// The function is not supported.
        #[doc(alias = "ISCSI_RESPONSE_FUNCTION_UNSUPPORTED")]
        FunctionNotSupported = 5,
        /// Authorization failed.
        #[doc(alias = "ISCSI_RESPONSE_NO_AUTHORIZATION")]
        AuthorizationFailed = 6,
        /// Function succeeded (QUERY TASK and kin; RFC 7144 4.2).
        FunctionSucceeded = 7,
        /// Function rejected.
        #[doc(alias = "ISCSI_RESPONSE_FUNCTION_REJECTED")]
        FunctionRejected = 255,
    }
}

codes! {
    /// The service response in a SCSI Response PDU (RFC 7143 11.4.3).
    ScsiResponse {
        /// The command completed at the target; its status is in the PDU.
        #[doc(alias = "ISCSI_RESPONSE_COMMAND_COMPLETED")]
        CommandCompleted = 0,
        /// Target failure; no status.
        #[doc(alias = "ISCSI_RESPONSE_TARGET_FAILURE")]
        TargetFailure = 1,
    }
}

codes! {
    /// Task attribute of a SCSI command (RFC 7143 11.3.1, SAM-5 8.6).
    TaskAttr {
        /// Untagged.
        #[doc(alias = "ISCSI_CMD_UNTAGGED")]
        Untagged = 0,
        /// Simple.
        #[doc(alias = "ISCSI_CMD_SIMPLE")]
        Simple = 1,
        /// Ordered.
        #[doc(alias = "ISCSI_CMD_ORDERED")]
        Ordered = 2,
        /// Head of queue.
        #[doc(alias = "ISCSI_CMD_HEAD_OF_QUEUE")]
        HeadOfQueue = 3,
        /// ACA.
        #[doc(alias = "ISCSI_CMD_ACA")]
        Aca = 4,
    }
}

codes! {
    /// What an asynchronous message reports (RFC 7143 11.9.1).
    AsyncEvent {
        /// A SCSI asynchronous event; sense data follow.
        #[doc(alias = "ISCSI_ASYNC_SCSI")]
        ScsiEvent = 0,
        /// The target asks for a logout.
        #[doc(alias = "ISCSI_ASYNC_LOGOUT")]
        RequestLogout = 1,
        /// The target will drop this connection.
        #[doc(alias = "ISCSI_ASYNC_DROP_CONNECTION")]
        DropConnection = 2,
        /// The target will drop all connections of the session.
        #[doc(alias = "ISCSI_ASYNC_DROP_SESSION")]
        DropSession = 3,
        /// The target asks for parameter negotiation.
        #[doc(alias = "ISCSI_ASYNC_PARAM_REQUEST")]
        RequestNegotiation = 4,
        /// Vendor-specific.
        #[doc(alias = "ISCSI_ASYNC_VENDOR")]
        Vendor = 255,
    }
}

/// Outcome of a login request: status class in the high byte, status detail in the low one (RFC 7143 11.13.5).
///
/// ```
/// use iscsi_scst::pdu::LoginStatus;
///
/// assert_eq!((LoginStatus::NotFound.class(), LoginStatus::NotFound.detail()), (2, 3));
/// assert!(LoginStatus::MovedTemporarily.is_redirection());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum LoginStatus {
    /// Login proceeds.
    #[doc(alias = "ISCSI_STATUS_ACCEPT")]
    Success = 0x0000,
    /// The target moved for now; TargetAddress says where.
    #[doc(alias = "ISCSI_STATUS_TGT_MOVED_TEMP")]
    MovedTemporarily = 0x0101,
    /// The target moved for good.
    #[doc(alias = "ISCSI_STATUS_TGT_MOVED_PERM")]
    MovedPermanently = 0x0102,
    /// Some error of the initiator.
    #[doc(alias = "ISCSI_STATUS_INIT_ERR")]
    InitiatorError = 0x0200,
    /// Authentication failed, or the target requires one that was not offered.
    #[doc(alias = "ISCSI_STATUS_AUTH_FAILED")]
    AuthenticationFailed = 0x0201,
    /// The initiator may not use this target.
    #[doc(alias = "ISCSI_STATUS_TGT_FORBIDDEN")]
    AuthorizationFailed = 0x0202,
    /// No such target.
    #[doc(alias = "ISCSI_STATUS_TGT_NOT_FOUND")]
    NotFound = 0x0203,
    /// The target was removed.
    #[doc(alias = "ISCSI_STATUS_TGT_REMOVED")]
    TargetRemoved = 0x0204,
    /// No common protocol version.
    #[doc(alias = "ISCSI_STATUS_NO_VERSION")]
    UnsupportedVersion = 0x0205,
    /// Too many connections in the session.
    #[doc(alias = "ISCSI_STATUS_TOO_MANY_CONN")]
    TooManyConnections = 0x0206,
    /// A mandatory key is missing.
    #[doc(alias = "ISCSI_STATUS_MISSING_FIELDS")]
    MissingParameter = 0x0207,
    /// This connection cannot be part of the session.
    #[doc(alias = "ISCSI_STATUS_CONN_ADD_FAILED")]
    CannotIncludeInSession = 0x0208,
    /// Unknown session type.
    #[doc(alias = "ISCSI_STATUS_INV_SESSION_TYPE")]
    SessionTypeNotSupported = 0x0209,
    /// The session that TSIH names does not exist.
    #[doc(alias = "ISCSI_STATUS_SESSION_NOT_FOUND")]
    SessionDoesNotExist = 0x020a,
    /// The request is not valid during login.
    #[doc(alias = "ISCSI_STATUS_INV_REQ_TYPE")]
    InvalidDuringLogin = 0x020b,
    /// Some error of the target.
    #[doc(alias = "ISCSI_STATUS_TARGET_ERROR")]
    TargetError = 0x0300,
    /// The service is not available now.
    #[doc(alias = "ISCSI_STATUS_SVC_UNAVAILABLE")]
    ServiceUnavailable = 0x0301,
    /// Out of resources.
    #[doc(alias = "ISCSI_STATUS_NO_RESOURCES")]
    OutOfResources = 0x0302,
}

impl LoginStatus {
    /// Status class: 0 success, 1 redirection, 2 the initiator's error, 3 the target's.
    #[must_use]
    pub const fn class(self) -> u8 {
        let [class, _] = (self as u16).to_be_bytes();
        class
    }

    /// Status detail within the class.
    #[must_use]
    pub const fn detail(self) -> u8 {
        let [_, detail] = (self as u16).to_be_bytes();
        detail
    }

    /// Whether the login goes on.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.class() == 0
    }

    /// Whether the initiator is sent elsewhere.
    #[must_use]
    pub const fn is_redirection(self) -> bool {
        self.class() == 1
    }
}
