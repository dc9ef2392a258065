//! Steps: every operation is a row of named steps, and each is a place where a test can make it fail, hang or die. What is
//! brought to a disk has names as well: a test can leave it out, and see what that costs.

/// Names the step that an operation reaches: `step!("create.record")`. In a release it is nothing. With the feature
/// `steps` the variable `CISTERN_STEP` says what happens there: `create.record=die`, `=fail` (the operation panics and so
/// ends without an answer) or `=hang` (for as long as the file named by `CISTERN_STEP_HANG` stands; the file named by
/// `CISTERN_STEP_SEEN` is made when it begins).
#[macro_export]
macro_rules! step {
    ($name:literal) => {
        #[cfg(feature = "steps")]
        $crate::domain::step::reached($name);
    };
}

/// Does what `CISTERN_STEP` asks for at this step.
#[cfg(feature = "steps")]
pub fn reached(name: &str) {
    let Ok(wanted) = std::env::var("CISTERN_STEP") else { return };
    let Some((step, act)) = wanted.split_once('=') else { return };
    if step != name {
        return;
    }
    match act {
        "die" => std::process::abort(),
        "fail" => panic!("step {name} was asked to fail"),
        "hang" => {
            show();
            let file = std::env::var("CISTERN_STEP_HANG").unwrap_or_default();
            while std::path::Path::new(&file).exists() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        other => panic!("CISTERN_STEP knows die, fail and hang, not {other}"),
    }
}

/// Whether `CISTERN_UNSYNCED` asks for what has this name not to be brought to its disk. If so, the file named by
/// `CISTERN_STEP_SEEN` is made.
#[cfg(feature = "steps")]
pub fn leaves_out(name: &str) -> bool {
    let leaves_out = std::env::var("CISTERN_UNSYNCED").is_ok_and(|wanted| wanted == name);
    if leaves_out {
        show();
    }
    leaves_out
}

/// Lets the test know.
#[cfg(feature = "steps")]
fn show() {
    if let Ok(file) = std::env::var("CISTERN_STEP_SEEN") {
        std::fs::write(&file, "").unwrap_or_else(|error| panic!("CISTERN_STEP_SEEN={file}: {error}"));
    }
}
