//! An error with its causes, in one line. tonic says "transport error" and keeps the reason in the source.

use std::error::Error;

/// What `error` says, then what each of its causes says.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some errors repeat what their cause says.
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        source = cause.source();
    }
    line
}
