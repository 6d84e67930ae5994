use fused_status::{Code, Error};
use tonic::Status;

/// Why a replica did not serve a request.
#[derive(Debug)]
pub enum Failed {
    /// The connection to it was lost, or cannot be made.
    Lost(Error),
    /// It says that it is going: nobody should be sent there.
    Leaving(Error),
    /// It cannot serve this request now; another one may.
    Unavailable(Error),
    /// Its answer, which another one would give too.
    Refused(Error),
}

impl Failed {
    /// What the caller is told.
    #[must_use]
    pub fn into_error(self) -> Error {
        let (Self::Lost(error) | Self::Leaving(error) | Self::Unavailable(error) | Self::Refused(error)) =
            self;
        error
    }

    /// A service's answer that is none: the stream ended before its first message.
    #[must_use]
    pub fn ended_early() -> Self {
        Self::Lost(Error::new(
            Code::Unavailable,
            "a service behind this one ended the stream before its first answer; try again",
        ))
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error.code() {
            Code::ShuttingDown => Self::Leaving(error),
            Code::Unavailable => Self::Unavailable(error),
            _ => Self::Refused(error),
        }
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        let error = Error::from(&status);
        // A status that no service of ours made says that the connection is gone.
        if error.code() == Code::Unavailable && !fused_status::is_ours(&status) {
            return Self::Lost(error);
        }
        Self::from(error)
    }
}
