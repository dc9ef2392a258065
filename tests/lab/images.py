"""Archives of images in Docker's format, made of programs of this machine without any builder or registry."""

import hashlib
import io
import json
import pathlib
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field

BASE = "cistern.dev/base:1"
PUBLIC = "docker.io/library/busybox:1.37"  # which people's manifests name
IDLE = ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 3600 & wait; done"]
PLACES = ["bin", "etc", "usr", "usr/bin", "usr/local", "usr/local/bin"]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What charts name the sidecars' images, and what stands for it in go.mod.
SIDECARS = re.compile(r"github\.com/kubernetes-csi/external-(provisioner|attacher|resizer|snapshotter)/v\d+ (v\S+)")
MODULES = pathlib.Path(__file__).resolve().parent.parent / "tools"


@dataclass
class Layer:
    """The files of an image, by their paths in it."""
    files: dict = field(default_factory=dict)  # path: a file of this machine
    texts: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)
    directories: dict = field(default_factory=dict)  # path: mode

    def write(self, to):
        with tarfile.open(to, "w") as tar:
            for path, mode in self.directories.items():
                add(tar, path, tarfile.DIRTYPE, mode=mode)
            for path, file in self.files.items():
                tar.add(file, path.lstrip("/"), filter=as_program)
            for path, text in self.texts.items():
                add(tar, path, tarfile.REGTYPE, text.encode())
            for path, target in self.links.items():
                add(tar, path, tarfile.SYMTYPE, linkname=target)


@dataclass
class Image:
    names: list
    layer: Layer
    entrypoint: list


def add(tar, path, kind, content=b"", mode=0o644, linkname=""):
    info = tarfile.TarInfo(path.lstrip("/"))
    info.type, info.mode, info.size, info.linkname = kind, mode, len(content), linkname
    tar.addfile(info, io.BytesIO(content))


def as_program(info):
    info.mode, info.uid, info.gid, info.uname, info.gname = 0o755, 0, 0, "", ""
    return info


def busybox(program, more):
    """All of busybox, and more programs in /usr/local/bin."""
    applets = subprocess.check_output([program, "--list"], text=True).split()
    return Layer(
        directories={path: 0o755 for path in PLACES} | {"tmp": 0o1777},
        files={"/bin/busybox": program} | {f"/usr/local/bin/{pathlib.Path(file).name}": file for file in more},
        texts={"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "/etc/group": "root:x:0:\n"},
        links={f"/bin/{applet}": "busybox" for applet in applets if applet != "busybox"} | {"/usr/bin/env": "/bin/env"},
    )


def sidecars(directory):
    """The programs that stand beside a CSI controller, each an image with nothing else in it."""
    pinned = "".join((MODULES / module / "go.mod").read_text() for module in ("", "provisioner"))
    versions = {f"csi-{name}": version for name, version in SIDECARS.findall(pinned)}
    return [
        Image([f"registry.k8s.io/sig-storage/{name}:{version}"], Layer(files={f"/{name}": directory / name}), [f"/{name}"])
        for name, version in versions.items()
    ]


def write(archive, images):
    """An archive with these images, each of one layer."""
    partial = archive.with_suffix(".partial")
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch, tarfile.open(partial, "w") as tar:
        manifest = []
        for number, image in enumerate(images):
            layer = pathlib.Path(scratch) / f"{number}.tar"
            image.layer.write(layer)
            with open(layer, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            config = {
                "architecture": "amd64", "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                "config": {"Entrypoint": image.entrypoint, "Env": [f"PATH={PATH}"]},
            }
            add(tar, f"{number}.json", tarfile.REGTYPE, json.dumps(config).encode())
            tar.add(layer, layer.name)
            layer.unlink()
            manifest.append({"Config": f"{number}.json", "RepoTags": image.names, "Layers": [layer.name]})
        add(tar, "manifest.json", tarfile.REGTYPE, json.dumps(manifest).encode())
    partial.rename(archive)
