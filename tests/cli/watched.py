"""Runs commands and prints, as JSON, what they did that commands should not do.

python watched.py FOLDER THAT MAY BE WRITTEN -- COMMAND... -- COMMAND...
"""

import json
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType

folder, *words = sys.argv[1:]
commands: list[list[str]] = []
for word in words:
    if word == "--":
        commands.append([])
    else:
        commands[-1].append(word)

writable = (os.path.realpath(folder), "/dev/null")
package = str(Path(__file__).resolve().parents[2] / "captum_transformer_lrp")
readable = (
    *(*writable, package, os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)),
    *(os.path.realpath(place) for place in sysconfig.get_paths().values()),
    *(os.path.realpath(path) for path in sys.path if path),
    *("/usr", "/lib", "/etc", "/proc", "/sys", "/dev/urandom"),
)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethost", "pickle.find_class")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
# When they are imported, libraries look for shared libraries, matplotlib once for fonts, and NumPy
# at the processor.
LOOKING = ("ctypes/util.py", "matplotlib/font_manager.py", "numpy/testing/_private/utils.py")
found: list[str] = []


def inside(path: object, folders: tuple[str, ...]) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return True  # a descriptor of what was opened before
    real = os.path.realpath(os.fsdecode(path))
    return any(real == place or real.startswith(place.rstrip("/") + "/") for place in folders)


def asked_by(frame: FrameType | None, files: tuple[str, ...]) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith(files):
            return True
        frame = frame.f_back
    return False


def watch(event: str, arguments: tuple) -> None:
    wrong = False
    if event == "open":
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        wrong = not inside(path, writable if writes else readable)
    elif event in CHANGES:
        wrong = not all(inside(one, writable) for one in arguments if isinstance(one, str | bytes))
    elif event in FORBIDDEN:
        wrong = True
    elif event in PROGRAMS:
        wrong = not asked_by(sys._getframe(1), LOOKING)
    elif event in ("exec", "compile"):  # libraries make classes so; the package does not
        wrong = sys._getframe(1).f_code.co_filename.startswith(package)
    if wrong:
        found.append(f"{event} {arguments!r}")


sys.addaudithook(watch)

from captum_transformer_lrp.cli import app  # noqa: E402 - its imports are watched, too

for command in commands:
    app(command, standalone_mode=False)
print(json.dumps(found), file=sys.stderr)
