//! The units of deploy/systemd, as they are installed: in hosts of a lab, whose systemd starts them, starts them again, and
//! boots with them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use cistern::domain::Role;
use support::client::MIB;
use support::peers::Pki;
use support::{Csi, Host, Lab, Volume, eventually};

const CONTROLLER: &str = "/run/cistern-controller/csi.sock";

/// Installs the program, a unit, and certificates in a host, with what else stands below /etc/cistern.
fn install(host: &Host, unit: &str, pki: &Pki, roles: &[Role], files: &[(&str, String)]) {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let (unit_file, tls) = (host.path_of(units.join(unit)), host.path_of(pki.machine(host.name(), roles)));
    let program = host.path_of(env!("CARGO_BIN_EXE_cistern"));
    host.sh(&format!(
        "ln -sf {} /usr/local/bin/cistern; cp {} /etc/systemd/system/; mkdir -p /etc/cistern; cp -r {} /etc/cistern/tls",
        program.display(),
        unit_file.display(),
        tls.display()
    ));
    for (name, text) in files {
        host.write(Path::new("/etc/cistern").join(name), 0, text.as_bytes());
    }
    host.run(&["systemd-analyze", "verify", &format!("/etc/systemd/system/{unit}")]);
    // what was installed is on the disk, as it is on a machine that has stood for a while
    host.sh(&format!("sync; systemctl enable --now {unit}; sync"));
}

fn is_active(host: &Host, unit: &str) -> bool {
    host.try_run(&["systemctl", "is-active", "--quiet", unit]).status.success()
}

fn main_process(host: &Host, unit: &str) -> String {
    host.run(&["systemctl", "show", "--property=MainPID", "--value", unit])
}

/// A client of the controller in this host, once it is ready.
fn connect(host: &Host) -> Csi {
    let socket = host.socket(CONTROLLER);
    eventually("the controller is ready", || Csi::try_connect(&socket).filter(Csi::is_ready))
}

/// All of these volumes can be worked with.
fn all_answer(csi: &Csi, volumes: &mut [Volume]) {
    for volume in volumes {
        let size = volume.size + 4 * MIB;
        eventually("it answers again", || csi.expand(volume, size).ok());
    }
}

#[test]
fn the_units_serve_and_outlive_restarts_and_power_cuts() {
    let (lab, pki) = (Lab::up(&[("a", "2G"), ("c", "")]), Pki::new());
    let (a, c) = (lab.host("a"), lab.host("c"));
    a.sh("mkfs.xfs -q /dev/ubdb; mkdir -p /srv/p; echo '/dev/ubdb /srv/p xfs defaults 0 0' >>/etc/fstab; mount -a");
    let hosts = format!(
        "hosts: [{{ name: a, addresses: ['{}:7443'] }}]\npools: [{{ name: p, dir: {{ path: /srv/p/pool }} }}]\n",
        a.address()
    );
    install(&a, "cistern-host.service", &pki, &[Role::Host], &[]);
    install(&c, "cistern-controller.service", &pki, &[Role::Controller], &[("hosts.yaml", hosts)]);
    let csi = connect(&c);
    let mut volumes = [
        Volume::block("block", 32 * MIB),
        Volume::filesystem("ext4", "ext4", 32 * MIB),
        Volume::filesystem("xfs", "xfs", 320 * MIB),
        Volume::filesystem("btrfs", "btrfs", 320 * MIB),
    ];
    for volume in &mut volumes {
        eventually("it is made", || csi.create(volume).ok());
        // clones too: what replays journals and changes UUIDs does so within the unit's limits
        let clone = Volume::block("", 0);
        let mut clone =
            Volume { name: format!("{}-clone", volume.name), fs: volume.fs.clone(), size: volume.size, ..clone };
        clone = clone.cloned_from(volume);
        csi.create(&mut clone).unwrap();
        csi.delete(&clone).unwrap();
    }

    println!("systemctl restart");
    a.run(&["systemctl", "restart", "cistern-host"]);
    c.run(&["systemctl", "restart", "cistern-controller"]);
    all_answer(&connect(&c), &mut volumes);

    println!("the processes are killed");
    for (host, unit) in [(&a, "cistern-host"), (&c, "cistern-controller")] {
        let before = main_process(host, unit);
        host.run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit]);
        eventually("systemd starts it again", || {
            (is_active(host, unit) && ![before.as_str(), "0\n"].contains(&main_process(host, unit).as_str()))
                .then_some(())
        });
    }
    all_answer(&connect(&c), &mut volumes);

    println!("the power fails");
    for host in [&a, &c] {
        host.kill();
        host.up();
    }
    all_answer(&connect(&c), &mut volumes);
    let csi = connect(&c);
    volumes.iter().for_each(|volume| csi.delete(volume).unwrap());
    assert_eq!(csi.volumes(), []);
    for (host, unit) in [(&a, "cistern-host"), (&c, "cistern-controller")] {
        host.run(&["systemctl", "stop", unit]);
        let result = host.run(&["systemctl", "show", "--property=Result", "--value", unit]);
        assert_eq!(result, "success\n", "{unit}: {}", host.run(&["journalctl", "--no-pager", "-u", unit]));
    }
}
