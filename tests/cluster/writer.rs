//! Pods that write all the time: each block is numbered and brought to the disk, and any error is noted.

use crate::Mode;
use crate::support::cluster::{Story, claim, pod};
use crate::support::eventually;

/// Writes block after block to `$1`, until it is told to stop or something goes wrong. It has it open besides, as a guest does.
const WRITE: &str = r"
n=0
while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    printf '%-4095d\n' $n | dd of=$1 bs=4k iflag=fullblock seek=$((n - 1)) conv=notrunc,fsync 2>/tmp/said \
        || { echo block $n: $(cat /tmp/said) >/tmp/error; exit; }
    echo $n >>/tmp/written
    sleep 0.05
done
touch /tmp/stopped
";

/// One of each mode in each pool, on both nodes: `(pod, pool, mode, node)`.
pub const WRITERS: [(&str, &str, Mode, &str); 4] = [
    ("files-a", "plain", Mode::Filesystem, "a"),
    ("blocks-a", "boxed", Mode::Block, "a"),
    ("files-b", "boxed", Mode::Filesystem, "b"),
    ("blocks-b", "plain", Mode::Block, "b"),
];

/// A pod, its claim of the same name, and the process in it that writes.
pub struct Writer<'a> {
    story: &'a Story<'a>,
    pod: String,
    mode: Mode,
    before: Place,
}

/// What a volume is to a pod: the device's numbers, the mount, and the file below the device.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    device: String,
    mount: String,
    file: String,
}

impl<'a> Writer<'a> {
    /// Starts them on nodes of the cluster: `(pod, pool, mode, node)`. Answers when all of them write.
    pub fn start(story: &'a Story<'a>, wanted: &[(&str, &str, Mode, &str)]) -> Vec<Writer<'a>> {
        for (name, pool, mode, node) in wanted {
            story.apply(&claim(name, pool, mode.name(), "256Mi", ""));
            story.apply(&pod(name, name, mode.name(), node));
        }
        story.until_ready(&wanted.iter().map(|(name, ..)| *name).collect::<Vec<_>>());
        wanted.iter().map(|(name, _, mode, _)| Writer::begin(story, name, *mode)).collect()
    }

    /// Begins to write in a pod that is ready.
    pub fn begin(story: &'a Story<'a>, pod: &str, mode: Mode) -> Writer<'a> {
        let file = path(mode);
        story.exec(
            pod,
            &format!("cat >/tmp/write <<'END'\n{WRITE}\nEND\nsh /tmp/write {file} 3<>{file} >/dev/null 2>&1 &"),
        );
        let before = Place::look(story, pod, mode);
        let writer = Writer { story, pod: pod.to_owned(), mode, before };
        writer.until_it_writes();
        writer
    }

    /// Waits until it has written more than it had.
    pub fn until_it_writes(&self) {
        let before = self.written();
        eventually("the pod writes", || (self.written() > before).then_some(()));
    }

    /// How many blocks it wrote. Fails if it met an error.
    pub fn written(&self) -> u64 {
        let shown =
            self.story.exec(&self.pod, "cat /tmp/error 2>/dev/null || true; echo; wc -l </tmp/written || echo 0");
        let (error, written) = shown.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(error.trim(), "", "{} met an error", self.pod);
        written.trim().parse().unwrap()
    }

    /// It writes on, has met no error, has lost nothing of what it wrote, and all that is below is as it was at first.
    pub fn assert_nothing_happened(&self) {
        self.until_it_writes();
        assert_eq!(Place::look(self.story, &self.pod, self.mode), self.before, "{}", self.pod);
        assert_all_is_there(self.story, &self.pod, self.mode, self.written());
    }

    /// Stops writing and answers how many blocks there are. The pod stays.
    pub fn stop(self) -> u64 {
        self.assert_nothing_happened();
        self.story.exec(&self.pod, "touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.05; done");
        self.written()
    }

    /// The pod's name, and its claim's.
    pub fn name(&self) -> &str {
        &self.pod
    }
}

fn path(mode: Mode) -> &'static str {
    match mode {
        Mode::Filesystem => "/data/blocks",
        Mode::Block => "/dev/data",
    }
}

/// A pod reads each block that a writer wrote there.
pub fn assert_all_is_there(story: &Story, pod: &str, mode: Mode, written: u64) {
    let bytes = written * 4096;
    let gap = r#"awk '$1 != NR { print "block " NR " is " $1; exit } END { print NR }'"#;
    let found = story.exec(pod, &format!("head -c {bytes} {} | {gap}", path(mode)));
    assert_eq!(found.trim(), written.to_string(), "{pod} reads what was written");
}

impl Place {
    fn look(story: &Story, pod: &str, mode: Mode) -> Place {
        let mounted = "awk '$5 == \"/data\" { print $3, $4, $(NF-2) }' /proc/self/mountinfo";
        let number = r"printf '%d:%d\n' 0x$(stat -c %t /dev/data) 0x$(stat -c %T /dev/data)";
        let shown = story.exec(
            pod,
            match mode {
                Mode::Filesystem => mounted,
                Mode::Block => number,
            },
        );
        let device = shown.split_whitespace().next().unwrap().to_owned();
        let file = story.node_of(pod).sh(&format!("cat /sys/dev/block/{device}/loop/backing_file"));
        Place { device, mount: shown, file }
    }
}
