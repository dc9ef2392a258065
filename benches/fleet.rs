//! How a controller grows with its hosts: 50, 500 and 5,000 of them, played by this program (tests/simulation/), with 20
//! volumes each, all well and with 2 % of them bad. `make bench WHAT=fleet`; the numbers of hosts may be given.
//!
//! The hosts share the processors with the controller, and a create asks every host: what a call takes is therefore shown
//! beside the processors' time that the controller itself has spent on it. The last lines of the output are a table for
//! docs/evidence.md.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/simulation/mod.rs"]
mod simulation;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use simulation::controller::{Controller, create, request};
use simulation::{Manner, Played, Simulation};

/// Volumes of each host at the beginning.
const VOLUMES: usize = 20;
/// Of so many hosts one is bad.
const BAD: usize = 50;
/// How many creates are under way at once where many are.
const AT_ONCE: usize = 16;

/// Half of the bad ones hang in one way or another, the others are slow or drop their connections.
const MANNERS: [Manner; 6] = [
    Manner::Silent,
    Manner::Slow(Duration::from_millis(300)),
    Manner::Deaf,
    Manner::Flapping(Duration::from_secs(3)),
    Manner::Mute,
    Manner::Slow(Duration::from_millis(100)),
];

/// What calls of one kind took, and what the controller's processors' time of one was.
struct Measured {
    took: Vec<Duration>,
    cpu: Duration,
}

impl Measured {
    fn percentile(&self, percent: usize) -> Duration {
        self.took[(self.took.len() - 1) * percent / 100]
    }

    /// `p50 / p99 (processors)`, in milliseconds.
    fn cell(&self) -> String {
        format!(
            "{} / {} ({})",
            milliseconds(self.percentile(50)),
            milliseconds(self.percentile(99)),
            milliseconds(self.cpu)
        )
    }
}

fn milliseconds(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1000.0;
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Makes calls one after another.
fn measure(controller: &Controller, calls: usize, mut call: impl FnMut(usize)) -> Measured {
    let before = controller.cpu();
    let mut took: Vec<Duration> = (0..calls)
        .map(|number| {
            let begun = Instant::now();
            call(number);
            begun.elapsed()
        })
        .collect();
    let cpu = (controller.cpu() - before) / u32::try_from(calls).unwrap();
    took.sort();
    Measured { took, cpu }
}

fn main() {
    let numbers = std::env::args().skip(1).filter_map(|word| word.parse().ok());
    let mut hosts: Vec<usize> = numbers.collect();
    if hosts.is_empty() {
        hosts = vec![50, 500, 5000];
    }
    println!("{}", HEAD.trim());
    for count in hosts {
        for bad in [false, true] {
            println!("{}", row(count, bad));
        }
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!("load at the end: {}", load.trim());
}

const HEAD: &str = "
| hosts | bad | ready, s (CPU) | create | 16 at once, /s | publish | list all | capacity | RSS / peak, MiB | files |
|------:|----:|---------------:|-------:|---------------:|--------:|---------:|---------:|----------------:|------:|
";

fn row(count: usize, bad: bool) -> String {
    let simulation = Simulation::of(count, VOLUMES);
    let mut bad_ones = 0;
    for (number, host) in simulation.hosts.iter().enumerate().filter(|(number, _)| bad && number % BAD == BAD / 2) {
        host.behaves(MANNERS[number / BAD % MANNERS.len()]);
        bad_ones += 1;
    }
    let good: Vec<&Played> =
        simulation.hosts.iter().map(|host| &**host).filter(|host| host.manner() == Manner::Well).collect();
    let text = simulation.text(|_| String::new());
    drop(Controller::start(&simulation.pki, &text, &[]));
    let controller = Controller::start(&simulation.pki, &text, &["--patience", "1"]);
    let ready = format!("{:.1} ({:.1})", controller.ready_after.as_secs_f64(), controller.cpu().as_secs_f64());
    eprintln!("{count} hosts, {bad_ones} bad: ready after {ready} s");
    let rss = controller.memory("VmRSS") >> 20;
    let (creates, calls) = (if count > 1000 { 30 } else { 100 }, 300);
    let at = |number: usize| good[number * 7919 % good.len()];
    // the first one finds out who hangs
    controller.create("first", Some(at(0))).unwrap();
    let created = measure(&controller, creates, |number| {
        controller.create(&format!("one-{number}"), Some(at(number))).unwrap();
    });
    let begun = Instant::now();
    let many = many(&controller, creates, &at);
    let per_second = f64::from(u32::try_from(many).unwrap()) / begun.elapsed().as_secs_f64();
    let published = measure(&controller, calls, |number| {
        let host = at(number);
        controller.publish(&host.volume_id(&format!("{}-volume-{}", host.name, number % VOLUMES)), host).unwrap();
    });
    let listed = measure(&controller, 10, |_| {
        assert!(controller.list().len() >= good.len() * VOLUMES);
    });
    let capacity = measure(&controller, 50, |_| {
        assert!(controller.capacity() > 0);
    });
    let away = controller.logged("host is away");
    eprintln!("{count} hosts, {bad_ones} bad: {away} times a host was found away");
    format!(
        "| {count} | {bad_ones} | {ready} | {} | {per_second:.0} | {} | {} | {} | {rss} / {} | {} |",
        created.cell(),
        published.cell(),
        listed.cell(),
        capacity.cell(),
        controller.memory("VmHWM") >> 20,
        controller.files(),
    )
}

/// Creates many at once, and answers how many were made.
fn many<'a>(controller: &Controller, creates: usize, at: &impl Fn(usize) -> &'a Played) -> usize {
    controller.block_on(async {
        let mut under_way = tokio::task::JoinSet::new();
        let mut made = 0;
        let mut refused = std::collections::BTreeMap::<String, usize>::new();
        let mut ended = |one: Result<Result<_, tonic::Status>, _>| match one.unwrap() {
            Ok(_) => 1,
            Err(status) => {
                refused.entry(status.message().to_owned()).and_modify(|count| *count += 1).or_insert(1);
                0
            }
        };
        for number in 0..creates {
            if under_way.len() == AT_ONCE {
                made += ended(under_way.join_next().await.unwrap());
            }
            let asked = request(create(&format!("many-{number}"), Some(at(number))));
            let mut client = controller.client();
            under_way.spawn(async move { client.create_volume(asked).await });
        }
        while let Some(one) = under_way.join_next().await {
            made += ended(one);
        }
        for (why, count) in refused.iter().take(5) {
            eprintln!("{count} refused: {why}");
        }
        made
    })
}
