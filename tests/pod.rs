//! A node in a pod, as its container is to the kernel: namespaces of its own, and a cgroup that ends with all that is in it. It
//! works as the machine does, and what it has begun to change outlives it. In a host of a lab; the cluster has real pods.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use cistern::domain::Role;
use support::client::MIB;
use support::peers::Pki;
use support::{Csi, Host, Lab, Volume, eventually};

/// In place of mkfs.xfs: one that waits until it may begin.
const SLOW_MKFS: &str = r#"
mv /usr/sbin/mkfs.xfs /usr/sbin/mkfs.xfs.real
cat >/usr/sbin/mkfs.xfs <<'PROGRAM'
#!/bin/bash
[ "$1" = -V ] && exec /usr/sbin/mkfs.xfs.real -V
echo $$ >>/run/mkfs.began
while [ ! -e /run/mkfs.may ]; do sleep 0.05; done
exec /usr/sbin/mkfs.xfs.real "$@"
PROGRAM
chmod +x /usr/sbin/mkfs.xfs"#;

/// Starts the node as kubelet would have it started, but for the image.
fn start_pod(host: &Host, pki: &Pki) {
    let tls = host.path_of(pki.machine("n", &[Role::Host, Role::Node]));
    let program = host.path_of(env!("CARGO_BIN_EXE_cistern"));
    host.sh(&format!(
        "systemd-run --quiet --collect --unit=pod --property=Delegate=yes \
         unshare --mount --uts --cgroup --propagation private bash -c \
         'hostname container; mount -t tmpfs none /srv; exec {} node --join-machine --node-id n --node-address {} \
          --listen {}:7443 --tls {} --config /etc/pools.yaml --data /var/lib/cistern --endpoint /run/cistern/csi.sock'",
        program.display(),
        host.address(),
        host.address(),
        tls.display(),
    ));
}

/// A controller beside it, which is in no pod.
fn start_controller(host: &Host, pki: &Pki) -> Csi {
    let tls = host.path_of(pki.machine("c", &[Role::Controller]));
    let program = host.path_of(env!("CARGO_BIN_EXE_cistern"));
    host.write(
        "/etc/hosts.yaml",
        0,
        format!("hosts: [{{ name: n, addresses: ['{}:7443'] }}]\n", host.address()).as_bytes(),
    );
    host.sh(&format!(
        "systemd-run --quiet --unit=controller {} controller --tls {} --config /etc/hosts.yaml --endpoint /run/controller.sock",
        program.display(),
        tls.display()
    ));
    let socket = host.socket("/run/controller.sock");
    eventually("the controller is ready", || Csi::try_connect(&socket).filter(Csi::is_ready))
}

fn cgroup_of(host: &Host, process: &str) -> String {
    host.sh(&format!("cat /proc/{process}/cgroup")).trim().to_owned()
}

#[test]
fn a_pod_works_as_the_machine_does_and_its_tools_outlive_it() {
    let (lab, pki) = (Lab::up(&[("n", "2G")]), Pki::new());
    let host = lab.host("n");
    host.sh("mkfs.xfs -q /dev/ubdb; mount /dev/ubdb /srv");
    host.write("/etc/pools.yaml", 0, b"pools: [{ name: p, dir: { path: /srv/pool } }]\n");
    host.sh(SLOW_MKFS);
    start_pod(&host, &pki);
    let csi = start_controller(&host, &pki);

    println!("what it makes is the machine's, not the container's");
    let mut block = Volume::block("block", 32 * MIB);
    eventually("it is made", || csi.create(&mut block).ok());
    host.sh("test $(ls /srv/pool/images | wc -l) = 1");

    println!("a tool is at work when the pod ends with all that is in it");
    let mut volume = Volume::filesystem("volume", "xfs", 320 * MIB);
    // it answers that the work goes on, after the caller's time
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| csi.create(&mut volume.clone()).is_err());
        let tool = eventually("the tool has begun", || {
            let began = host.try_run(&["cat", "/run/mkfs.began"]);
            began.status.success().then(|| String::from_utf8(began.stdout).unwrap().trim().to_owned())
        });
        assert_eq!(cgroup_of(&host, &tool), "0::/cistern");
        let node = host.run(&["systemctl", "show", "--property=MainPID", "--value", "pod"]);
        assert!(cgroup_of(&host, node.trim()).starts_with("0::/system.slice/pod.service"));
        host.sh("echo 1 >/sys/fs/cgroup/system.slice/pod.service/cgroup.kill");
        eventually("the pod is gone", || {
            (!host.try_run(&["systemctl", "is-active", "pod"]).status.success()).then_some(())
        });
        assert!(asked.join().unwrap(), "nobody can have answered");
        assert_eq!(cgroup_of(&host, &tool), "0::/cistern");
    });

    println!("the next pod waits for the tool, and has its volume then");
    start_pod(&host, &pki);
    host.sh("touch /run/mkfs.may");
    eventually("it is made", || csi.create(&mut volume).ok());
    eventually("it is deleted", || csi.delete(&volume).ok());
    eventually("it is deleted", || csi.delete(&block).ok());
    host.sh("test -z \"$(ls /srv/pool/images)\"");
    eventually("nothing runs there any more", || {
        host.run(&["cat", "/sys/fs/cgroup/cistern/cgroup.procs"]).is_empty().then_some(())
    });
}
