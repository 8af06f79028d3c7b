"""Two processes never train in one folder of examples/cifar100."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("PIL", "rich", "sklearn", "tensorboard", "torchvision"):
    pytest.importorskip(package)

import lock
import train_student

SCRIPTS = Path(lock.__file__).parent
TINY = ["--images", "16", "--batch_size", "8", "--epochs", "1", "--device", "cpu", "--quiet"]

HOLDER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(SCRIPTS)!r})
import lock
lock.hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds, and that process."""
    folder = tmp_path / "held"
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    yield folder, holder
    holder.kill()
    holder.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_a_lock_ends_with_its_process(held):
    folder, holder = held
    assert lock.held_by_another(folder)
    with pytest.raises(ValueError, match=re.escape(f"another process is training in {folder};")):
        lock.hold(folder)
    holder.kill()
    holder.wait()
    assert not lock.held_by_another(folder)
    lock.hold(folder)
    lock.hold(folder)  # one's own is no hindrance
    assert not lock.held_by_another(folder)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is training" in refused.stderr
    lock.release(folder)
    lock.release(folder)
    freed = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert freed.stdout == "held\n"


def test_a_training_in_a_folder_that_is_held_is_refused(tmp_path, monkeypatch):
    def taken(path):
        return None

    with monkeypatch.context() as patch:
        patch.setattr(lock, "_lock", taken)
        with pytest.raises(ValueError, match="another process is training in"):
            train_student.main([*TINY, "--distill", "none", "--save_folder", str(tmp_path)])
    (run,) = tmp_path.glob("student_model/*")
    assert list(run.iterdir()) == []
    train_student.main([*TINY, "--distill", "none", "--save_folder", str(tmp_path)])
    assert run.absolute() / "lock" not in lock._held  # free again
