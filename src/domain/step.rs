//! Steps: every operation is a row of named steps, and each is a place where a test can make it fail, hang or die.

/// Names the step that an operation reaches: `step!("create.record")`. In a release it is nothing. With the feature
/// `steps` the variable `CISTERN_STEP` says what happens there: `create.record=die`, `=fail` (the operation panics and so
/// ends without an answer) or `=hang` (for as long as the file named by `CISTERN_STEP_HANG` stands).
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
            let file = std::env::var("CISTERN_STEP_HANG").unwrap_or_default();
            while std::path::Path::new(&file).exists() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        other => panic!("CISTERN_STEP knows die, fail and hang, not {other}"),
    }
}
