//! The one place where gRPC codes are chosen: by what the caller will do next. Every match names every variant.
//!
//! The sidecars take ABORTED and UNAVAILABLE as "still under way" and ask again; RESOURCE_EXHAUSTED makes the provisioner
//! try another node; OUT_OF_RANGE ends an expansion that can never fit; FAILED_PRECONDITION waits for pods to leave.

use tonic::{Code, Status};

use crate::domain::error::chain;
use crate::node;
use crate::pool::host::Unavailable;
use crate::pool::jobs::JobError;
use crate::pool::operations::{
    CreateError, DeleteError, ExpandError, FindError, ModifyError, PublishError, ReadError, SettleError, SnapshotError,
    UnpublishError,
};
use crate::pool::records::RecordError;
use crate::share::ConnectError;

/// An error that has a gRPC code.
pub trait Coded: std::error::Error + 'static {
    /// The code, by what the caller will do next.
    fn code(&self) -> Code;

    /// The error with all its causes, in one line.
    fn status(&self) -> Status
    where
        Self: Sized,
    {
        Status::new(self.code(), chain(self))
    }
}

fn unavailable(error: &Unavailable) -> Code {
    match error {
        // a StorageClass that names no pool
        Unavailable::NoSuchPool(_) => Code::InvalidArgument,
        Unavailable::Lost(_) => Code::NotFound,
        Unavailable::PoolDown { .. } | Unavailable::StoreUnseen(_) => Code::Unavailable,
    }
}

/// The answer where a pool or store is not there.
pub fn away(error: &Unavailable) -> Status {
    Status::new(unavailable(error), chain(error))
}

fn record(error: &RecordError) -> Code {
    match error {
        RecordError::Read { .. } | RecordError::Write { .. } => Code::Internal,
        // a newer version's record, or a damaged one: people must look
        RecordError::Unreadable { .. } => Code::FailedPrecondition,
    }
}

fn job(error: &JobError) -> Code {
    match error {
        JobError::Stopped => Code::Aborted,
        _ if error.is_for_want_of_space() => Code::ResourceExhausted,
        JobError::Medium(_) | JobError::File(_) | JobError::Open { .. } | JobError::Sync(_) => Code::Internal,
        JobError::Record(error) => record(error),
    }
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            CreateError::Busy(_) | CreateError::Superseded | CreateError::SourceNotReady(_) => Code::Aborted,
            CreateError::Unavailable(error) => unavailable(error),
            CreateError::Mode { .. } | CreateError::SourceElsewhere { .. } | CreateError::SourceContent { .. } => {
                Code::InvalidArgument
            }
            CreateError::Exists { .. } => Code::AlreadyExists,
            CreateError::SourceUnknown(_) => Code::NotFound,
            CreateError::SourceInUse { .. } | CreateError::Stray(_) => Code::FailedPrecondition,
            CreateError::SmallerThanSource { .. } | CreateError::Size(_) => Code::OutOfRange,
            CreateError::Full { .. } | CreateError::Elsewhere { .. } => Code::ResourceExhausted,
            CreateError::Job(error) => job(error),
            CreateError::Record(error) => record(error),
            CreateError::Format(_)
            | CreateError::Adopt(_)
            | CreateError::Medium(_)
            | CreateError::Target(_)
            | CreateError::Store(_)
            | CreateError::Random(_) => Code::Internal,
            // something is left: the caller must ask again
            CreateError::TearDown(_) => Code::Unavailable,
        }
    }
}

impl Coded for DeleteError {
    fn code(&self) -> Code {
        match self {
            DeleteError::Busy(_) | DeleteError::Superseded => Code::Aborted,
            DeleteError::Unavailable(error) => unavailable(error),
            DeleteError::InUse(_) => Code::FailedPrecondition,
            DeleteError::Wipe(error) => job(error),
            DeleteError::Record(error) => record(error),
            DeleteError::Discard(_)
            | DeleteError::Open(_)
            | DeleteError::Medium(_)
            | DeleteError::Target(_)
            | DeleteError::TearDown(_) => Code::Internal,
        }
    }
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            PublishError::Busy(_) => Code::Aborted,
            PublishError::Unavailable(error) => unavailable(error),
            PublishError::VolumeUnknown(_) | PublishError::NodeUnknown { .. } => Code::NotFound,
            PublishError::Content { .. } | PublishError::Mode { .. } => Code::InvalidArgument,
            PublishError::Exists { .. } => Code::AlreadyExists,
            PublishError::Elsewhere(_) => Code::FailedPrecondition,
            PublishError::Record(error) => record(error),
            PublishError::Medium(_) | PublishError::Target(_) => Code::Internal,
        }
    }
}

impl Coded for UnpublishError {
    fn code(&self) -> Code {
        match self {
            UnpublishError::Busy(_) => Code::Aborted,
            UnpublishError::Unavailable(error) => unavailable(error),
            UnpublishError::StillUsed { .. } => Code::FailedPrecondition,
            UnpublishError::Record(error) => record(error),
            UnpublishError::Medium(_) | UnpublishError::Target(_) => Code::Internal,
        }
    }
}

impl Coded for ExpandError {
    fn code(&self) -> Code {
        match self {
            ExpandError::Busy(_) => Code::Aborted,
            ExpandError::Unavailable(error) => unavailable(error),
            ExpandError::VolumeUnknown(_) => Code::NotFound,
            ExpandError::TooLarge { .. } | ExpandError::Size(_) | ExpandError::Full { .. } => Code::OutOfRange,
            ExpandError::Job(error) => job(error),
            ExpandError::Record(error) => record(error),
            ExpandError::Medium(_) | ExpandError::Target(_) => Code::Internal,
        }
    }
}

impl Coded for ModifyError {
    fn code(&self) -> Code {
        match self {
            ModifyError::Busy(_) => Code::Aborted,
            ModifyError::Unavailable(error) => unavailable(error),
            ModifyError::VolumeUnknown(_) => Code::NotFound,
            ModifyError::Record(error) => record(error),
            ModifyError::Medium(_) | ModifyError::Target(_) => Code::Internal,
        }
    }
}

impl Coded for SnapshotError {
    fn code(&self) -> Code {
        match self {
            SnapshotError::Busy(_) => Code::Aborted,
            SnapshotError::Unavailable(error) => unavailable(error),
            SnapshotError::VolumeUnknown(_) => Code::NotFound,
            SnapshotError::Exists(_) => Code::AlreadyExists,
            SnapshotError::InUse { .. } | SnapshotError::Stray(_) => Code::FailedPrecondition,
            SnapshotError::Full { .. } => Code::ResourceExhausted,
            SnapshotError::Job(error) => job(error),
            SnapshotError::Record(error) => record(error),
            SnapshotError::Medium(_) | SnapshotError::Target(_) | SnapshotError::Thread(_) => Code::Internal,
            SnapshotError::TearDown(_) => Code::Unavailable,
        }
    }
}

impl Coded for FindError {
    fn code(&self) -> Code {
        match self {
            FindError::Record(error) => record(error),
            FindError::Store(_) | FindError::Random(_) => Code::Internal,
        }
    }
}

impl Coded for SettleError {
    fn code(&self) -> Code {
        match self {
            SettleError::Busy(_) | SettleError::Superseded => Code::Aborted,
            SettleError::Unavailable(error) => unavailable(error),
            SettleError::Granted { .. } => Code::FailedPrecondition,
            SettleError::Record(error) => record(error),
            SettleError::TearDown(_) | SettleError::Remove(_) => Code::Unavailable,
        }
    }
}

impl Coded for ReadError {
    fn code(&self) -> Code {
        match self {
            ReadError::Busy(_) => Code::Aborted,
            ReadError::Unavailable(error) => unavailable(error),
            ReadError::Unknown(_) => Code::NotFound,
            ReadError::InUse(_) => Code::FailedPrecondition,
            ReadError::Record(error) => record(error),
            ReadError::Medium(_)
            | ReadError::Target(_)
            | ReadError::Open(_)
            | ReadError::File(_)
            | ReadError::Bytes(_) => Code::Internal,
        }
    }
}

impl Coded for RecordError {
    fn code(&self) -> Code {
        record(self)
    }
}

fn connect(error: &ConnectError) -> Code {
    match error {
        // whoever detached it gives it back by attaching it again
        ConnectError::Missing { .. } | ConnectError::InUse { .. } => Code::FailedPrecondition,
        ConnectError::Step { .. } => Code::Internal,
    }
}

impl Coded for node::StageError {
    fn code(&self) -> Code {
        match self {
            node::StageError::Busy(_) => Code::Aborted,
            node::StageError::Exists(_) => Code::AlreadyExists,
            node::StageError::OtherVolume(_) | node::StageError::Option(_) => Code::InvalidArgument,
            node::StageError::Elsewhere(_)
            | node::StageError::Content { .. }
            | node::StageError::NotFormatted { .. }
            | node::StageError::Occupied { .. } => Code::FailedPrecondition,
            node::StageError::Connect(error) => connect(error),
            node::StageError::Probe(_)
            | node::StageError::Open { .. }
            | node::StageError::Mount(_)
            | node::StageError::Directory { .. }
            | node::StageError::Record(_) => Code::Internal,
        }
    }
}

impl Coded for node::UnstageError {
    fn code(&self) -> Code {
        match self {
            node::UnstageError::Busy(_) => Code::Aborted,
            node::UnstageError::Published(_) | node::UnstageError::InUse(_) => Code::FailedPrecondition,
            node::UnstageError::Connect(error) => connect(error),
            node::UnstageError::Mount(_) | node::UnstageError::Record(_) => Code::Internal,
        }
    }
}

impl Coded for node::PublishError {
    fn code(&self) -> Code {
        match self {
            node::PublishError::Busy(_) => Code::Aborted,
            node::PublishError::Exists { .. } => Code::AlreadyExists,
            node::PublishError::NotStaged(_)
            | node::PublishError::StagedOtherwise(_)
            | node::PublishError::Once(_)
            | node::PublishError::Occupied(_) => Code::FailedPrecondition,
            node::PublishError::Connect(error) => connect(error),
            node::PublishError::Target { .. }
            | node::PublishError::Group { .. }
            | node::PublishError::Mount(_)
            | node::PublishError::Record(_) => Code::Internal,
        }
    }
}

impl Coded for node::UnpublishError {
    fn code(&self) -> Code {
        match self {
            node::UnpublishError::Busy(_) => Code::Aborted,
            node::UnpublishError::InUse(_) => Code::FailedPrecondition,
            node::UnpublishError::Connect(error) => connect(error),
            node::UnpublishError::Target { .. } | node::UnpublishError::Mount(_) | node::UnpublishError::Record(_) => {
                Code::Internal
            }
        }
    }
}

impl Coded for node::GrowError {
    fn code(&self) -> Code {
        match self {
            node::GrowError::Busy(_) => Code::Aborted,
            node::GrowError::NotHere { .. } => Code::NotFound,
            // OUT_OF_RANGE and FAILED_PRECONDITION are final for kubelet, and this passes once the host has grown it
            node::GrowError::TooSmall { .. } => Code::Unavailable,
            node::GrowError::Connect(error) => connect(error),
            node::GrowError::Mount(_) | node::GrowError::Filesystem(_) | node::GrowError::Record(_) => Code::Internal,
        }
    }
}

impl Coded for node::StatisticsError {
    fn code(&self) -> Code {
        match self {
            node::StatisticsError::NotHere { .. } => Code::NotFound,
            node::StatisticsError::Connect(error) => connect(error),
            node::StatisticsError::Measure { .. }
            | node::StatisticsError::Mount(_)
            | node::StatisticsError::Record(_) => Code::Internal,
        }
    }
}
