//! What to send and when: prompts and data sets become request bodies, a seed
//! becomes arrival offsets. Pure but for reading files; knows no sockets.

pub mod arrivals;
pub mod body;
pub mod prompts;

pub use arrivals::ArrivalProcess;
pub use body::BodyOptions;
pub use prompts::{Item, WorkloadError};
