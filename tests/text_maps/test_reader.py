import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from flow_grpo.text_maps import process
from flow_grpo.text_maps.reader import make_reader
from tests.moody_engine import MoodyEngine, spelled
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
WORDS = ["HUT", "RED", "BOX", "TAG", "LOG", "FIN", "MUD", "SAP"]

both_kinds = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture(scope="module")
def serial(rapidocr_engine):
    return make_reader(rapidocr_engine)


@pytest.fixture(scope="module")
def pool():
    with make_reader("rapidocr", num_workers=2) as reader:
        yield reader


@pytest.fixture
def words(draw_text):
    return torch.stack([draw_text(word) for word in WORDS])


def greys(*levels):
    """An image of one level for each level given."""
    return (torch.tensor(levels) / 255).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def texts(lines):
    return [image_lines and "".join(line.text for line in image_lines) for image_lines in lines]


def worker_ids(parent=None):
    command = ["pgrep", "-P", str(parent or os.getpid()), "-f", "flow_grpo.text_maps.process"]
    return {int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()}


def is_running(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before its file was opened, or before it was read
        return False


def run_script(tmp_path, code):
    """Start a script that has no `if __name__ == "__main__"`, in a process group of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        f"open({str(tmp_path / 'runs')!r}, 'a').write('.')\n"
        "import os, signal, torch\n"
        "from flow_grpo.text_maps.reader import make_reader\n"
        "from tests.moody_engine import MoodyEngine\n"
        "from tests.text_maps.test_reader import greys, texts\n" + code
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@both_kinds
def test_results_come_in_order(num_workers, tmp_path):
    with make_reader(MoodyEngine(tmp_path), num_workers) as reader:
        assert texts(reader.submit(greys(*range(0, 250, 10))).result()) == [str(level) for level in range(0, 250, 10)]


@both_kinds
def test_image_that_fails_once_is_read(num_workers, tmp_path):
    engine = MoodyEngine(tmp_path, {204: ["raise"]})
    with make_reader(engine, num_workers) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]
    assert engine.num_tries(204) == 2 and engine.num_tries(51) == engine.num_tries(102) == 1


@both_kinds
def test_image_that_fails_twice_is_none_and_logged(num_workers, tmp_path, caplog):
    engine = MoodyEngine(tmp_path, {204: ["raise", "raise"]})
    with make_reader(engine, num_workers) as reader, caplog.at_level(logging.WARNING):
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", None, "102"]
    assert "image 1 of 3 could not be read: OSError: no mood for image_204" in caplog.text
    assert engine.num_tries(204) == 2


@both_kinds
def test_batch_of_which_nothing_can_be_read_is_none_throughout(num_workers, tmp_path, caplog):
    """As in a batch of one: one bad image is no reason to end a run."""
    moods = {1: ["raise", "raise"], 2: ["raise", "raise"]}
    with make_reader(MoodyEngine(tmp_path, moods), num_workers) as reader, caplog.at_level(logging.WARNING):
        assert texts(reader.submit(greys(1, 2)).result()) == [None, None]
        assert texts(reader.submit(greys(1, 2)).result()) == ["1", "2"]  # and the reader still reads
    assert "image 0 of 2 could not be read: OSError: no mood for image_1" in caplog.text


@both_kinds
def test_each_image_is_judged_by_its_own_function_and_a_failed_one_is_none(num_workers, tmp_path):
    engine = MoodyEngine(tmp_path, {204: ["raise", "raise"]})
    with make_reader(engine, num_workers) as reader:
        judges = [partial(spelled, ending=ending) for ending in ("a", "b", "c")]
        assert reader.submit(greys(51, 204, 102), judges).result() == ["51a", None, "102c"]


@pytest.mark.parametrize("answer", [None, ["HUT"], [([[0, 0]] * 4, "HUT", 1.0)], [None]])
def test_answer_that_is_no_list_of_lines_is_the_engines_failure(answer, caplog):
    with caplog.at_level(logging.WARNING):
        assert make_reader(lambda image: answer).submit(greys(1, 2)).result() == [None, None]
    assert "must return a list of TextLines, got " in caplog.text


@both_kinds
def test_error_of_a_judge_is_raised_and_is_not_the_images(num_workers, tmp_path):
    engine = MoodyEngine(tmp_path)
    with make_reader(engine, num_workers) as reader:
        waiting = reader.submit(greys(51, 204), [partial(spelled, ending=ending) for ending in ("a", 5)])
        with pytest.raises(TypeError, match="concatenate"):
            waiting.result()
        assert texts(reader.submit(greys(1)).result()) == ["1"]  # and the reader still reads
    assert engine.num_tries(204) == 1


@both_kinds
def test_images_may_change_once_they_are_submitted(num_workers, tmp_path):
    images = greys(51, 204).clone()
    with make_reader(MoodyEngine(tmp_path), num_workers) as reader:
        lines = reader.submit(images)
        images.zero_()
        assert texts(lines.result()) == ["51", "204"]


def test_worker_that_dies_on_an_image_is_replaced_and_the_image_read_again(tmp_path):
    engine = MoodyEngine(tmp_path, {204: ["die"]})
    with make_reader(engine, num_workers=1) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]
    assert engine.num_tries(204) == 2


def test_image_that_kills_its_worker_twice_is_none_and_costs_no_other(tmp_path, caplog):
    engine = MoodyEngine(tmp_path, {204: ["die", "die", "die"]})
    with make_reader(engine, num_workers=2) as reader, caplog.at_level(logging.WARNING):
        assert texts(reader.submit(greys(51, 204, 102, 153)).result()) == ["51", None, "102", "153"]
    assert "image 1 of 4 could not be read: ProcessEnded: the OCR worker died (exit status -9)" in caplog.text
    assert engine.num_tries(204) == 2


def test_worker_that_hangs_is_replaced(tmp_path):
    with make_reader(MoodyEngine(tmp_path, {204: ["hang"]}), num_workers=2, image_timeout=2.0) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]


@pytest.mark.parametrize("side", [8, 512])
def test_worker_that_is_stopped_while_idle_costs_a_timeout(side, tmp_path):
    """Small images fit the socket's buffer; of large ones the sending itself waits for the worker."""
    before, images = worker_ids(), greys(51, 102).repeat(1, 1, side // 8, side // 8)
    with make_reader(MoodyEngine(tmp_path), num_workers=1, image_timeout=2.0) as reader:
        reader.submit(images).result()
        (worker,) = worker_ids() - before
        os.kill(worker, signal.SIGSTOP)
        assert texts(reader.submit(images).result()) == ["51", "102"]
    assert not is_running(worker)


def test_worker_that_is_stopped_in_its_work_costs_at_most_its_image(tmp_path):
    engine = MoodyEngine(tmp_path, {204: ["stop", "stop"]})
    with make_reader(engine, num_workers=2, image_timeout=2.0) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", None, "102"]


def test_worker_that_is_stopped_in_the_middle_of_its_answer_costs_at_most_its_image(tmp_path):
    engine = MoodyEngine(tmp_path, {204: ["stop in the answer", "well"]})
    with make_reader(engine, num_workers=1, image_timeout=2.0) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]


def num_builds(engine):
    return len(engine.tries("build").read_bytes())


def test_worker_that_dies_while_it_is_built_costs_nothing(tmp_path):
    engine = MoodyEngine(tmp_path, build_moods=["well", "die", "well"])
    with make_reader(engine, num_workers=2) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]
        wait_until(lambda: num_builds(engine) == 3)


def test_worker_that_is_stopped_while_it_is_built_costs_nothing(tmp_path, monkeypatch):
    # on a busy machine one that is not stopped may take as long: it is ended and built again, too
    monkeypatch.setattr(process, "REBUILD_TIMEOUT", 5.0)
    monkeypatch.setattr(process, "NUM_BUILDS", 20)
    engine = MoodyEngine(tmp_path, build_moods=["well", "stop", "well"])
    with make_reader(engine, num_workers=2) as reader:
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]
        wait_until(lambda: num_builds(engine) >= 3)


def test_the_other_workers_go_on_without_one_that_cannot_be_replaced(tmp_path, caplog):
    engine = MoodyEngine(tmp_path, {204: ["die"]}, build_moods=["well", "well", "raise"])
    with make_reader(engine, num_workers=2) as reader, caplog.at_level(logging.WARNING):
        wait_until(lambda: num_builds(engine) == 2)
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]
        assert "could not be replaced (OSError: no mood for build); the others go on without it" in caplog.text
        assert texts(reader.submit(greys(51, 102)).result()) == ["51", "102"]


def test_worker_that_cannot_be_replaced_fails_the_batch_and_not_its_images(tmp_path):
    engine = MoodyEngine(tmp_path, {204: ["die"]}, build_moods=["well", "raise"])
    with make_reader(engine, num_workers=1) as reader:
        with pytest.raises(RuntimeError, match="could not be replaced") as caught:
            reader.submit(greys(51, 204, 102)).result()
        assert str(caught.value.__cause__) == "no mood for build"
        assert texts(reader.submit(greys(51, 204, 102)).result()) == ["51", "204", "102"]  # the third build goes well


def test_pool_reads_exactly_what_the_serial_reader_reads(pool, serial, words):
    images = torch.cat([words, words.flip(2), torch.ones(1, 3, 64, 64)])  # upside down too, and one without text
    alone, pooled = serial.submit(images).result(), pool.submit(images).result()
    assert texts(pooled)[:8] == WORDS and pooled[-1] == []
    assert [len(lines) for lines in pooled] == [len(lines) for lines in alone]
    for line, reference in zip(sum(pooled, []), sum(alone, []), strict=True):
        assert (line.text, line.confidence) == (reference.text, reference.confidence)
        assert np.array_equal(line.quad, reference.quad)


def test_threads_may_submit_and_wait_in_any_order(pool, words):
    results = {}

    def read_two_batches(number):
        first, second = pool.submit(words.roll(number, 0)), pool.submit(words.roll(-number, 0))
        results[-number], results[number] = texts(second.result()), texts(first.result())

    threads = [threading.Thread(target=read_two_batches, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: np.roll(WORDS, number).tolist() for number in (1, 2, 3, -1, -2, -3)}


def test_batch_survives_the_killing_of_a_worker(pool, words):
    before = worker_ids()
    first, rest = pool.submit(words), pool.submit(words.repeat(3, 1, 1, 1))
    first.result()  # the workers are now at the rest
    os.kill(min(before), signal.SIGKILL)
    assert texts(rest.result()) == WORDS * 3
    # a worker that was idle is replaced when its thread takes an image, which may be none of the next batch
    wait_until(lambda: texts(pool.submit(words).result()) == WORDS and len(worker_ids()) == 2)
    assert len(before) == 2 and len(before & worker_ids()) == 1


def test_submit_returns_before_anything_is_read(tmp_path):
    with make_reader(MoodyEngine(tmp_path, {51: ["hang"]}), num_workers=1) as reader:
        reader.submit(greys(51))


def test_closed_reader_fails_what_waits_and_leaves_no_process(tmp_path):
    before = worker_ids()
    reader = make_reader(MoodyEngine(tmp_path, {51: ["hang"] * 2}), num_workers=2)  # both batches wait for theirs
    waiting = [reader.submit(greys(51, 102, 153)) for _ in range(2)]
    started = worker_ids() - before
    reader.close()
    reader.close()
    for lines in waiting:
        with pytest.raises(RuntimeError):
            lines.result()
    with pytest.raises(RuntimeError, match="closed"):
        reader.submit(greys(1))
    assert len(started) == 2 and not any(map(is_running, started))


def test_forgotten_reader_ends_its_workers_but_not_before_its_results_are_read(tmp_path):
    before = worker_ids()
    reader = make_reader(MoodyEngine(tmp_path), num_workers=1)
    (worker,) = worker_ids() - before
    lines = reader.submit(greys(51, 204))
    del reader
    gc.collect()
    assert texts(lines.result()) == ["51", "204"]
    del lines
    # the thread that read the last image may hold the reader for a moment longer, and then ends the worker itself
    wait_until(lambda: not is_running(worker))


@both_kinds
def test_engine_that_cannot_be_built_raises_at_once(num_workers):
    with pytest.raises(ValueError, match="unknown OCR engine 'easyocr'"):
        make_reader("easyocr", num_workers)
    with pytest.raises(ValueError, match="no option colour"):
        make_reader("rapidocr", num_workers, {"colour": "red"})


def test_engine_that_cannot_be_built_in_a_worker_leaves_no_process(tmp_path):
    before = worker_ids()
    with pytest.raises(OSError, match="no mood for build"):
        make_reader(MoodyEngine(tmp_path, build_moods=["raise"]), num_workers=2)
    with pytest.raises(RuntimeError, match=r"the OCR worker died \(exit status -9\)"):
        make_reader(MoodyEngine(tmp_path, build_moods=["raise", "die"]), num_workers=2)
    assert worker_ids() == before


def test_engine_that_cannot_travel_says_so():
    with pytest.raises(ValueError, match="must be picklable.*num_workers=0"):
        make_reader(lambda image: [], num_workers=1)
    with pytest.raises(ValueError, match="num_workers must be 0"):
        make_reader("rapidocr", num_workers=-1)


def test_workers_end_with_a_parent_that_is_killed_even_while_they_read(tmp_path):
    script = run_script(
        tmp_path,
        f"reader = make_reader(MoodyEngine({str(tmp_path)!r}, {{51: ['hang'] * 9}}), num_workers=2)\n"
        "lines = reader.submit(greys(51))\n"  # one hangs, one idles
        "print('submitted', flush=True)\n"
        "lines.result()\n",
    )
    assert script.stdout.readline() == "submitted\n"
    wait_until((tmp_path / "image_51").exists)
    workers = worker_ids(script.pid)
    script.kill()
    script.wait()
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_running, workers)))
    assert (tmp_path / "runs").read_text() == "."  # no worker ran the script again


def test_interrupt_reaches_the_caller_and_not_the_workers(tmp_path):
    script = run_script(
        tmp_path,
        # a shell's background job, in which these tests may run, ignores SIGINT, and so do its children
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"reader = make_reader(MoodyEngine({str(tmp_path)!r}), num_workers=2)\n"
        "reader.submit(greys(1, 2, 3, 4)).result()\n"
        "try:\n"
        "    os.killpg(0, signal.SIGINT)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    print(texts(reader.submit(greys(5, 6)).result()))\n"
        f"unread = make_reader(MoodyEngine({str(tmp_path)!r}, {{7: ['hang']}}), num_workers=1).submit(greys(7, 8))\n",
    )
    assert script.communicate() == ("['5', '6']\n", "") and script.returncode == 0  # nor does exit wait for what hangs


def test_engine_of_the_script_itself_is_refused(tmp_path):
    script = run_script(
        tmp_path,
        "class Engine:\n"
        "    def __call__(self, image):\n"
        "        return []\n"
        "try:\n"
        "    make_reader(Engine(), num_workers=1)\n"
        "except ValueError as error:\n"
        "    print(error)\n",
    )
    assert "define it in a module that can be imported" in script.communicate()[0]


def test_a_worker_imports_nothing_from_the_folder_it_works_in(tmp_path):
    """A file there may have the name of a library. PYTHONSAFEPATH would help, but Python 3.10 does not know it."""
    for name in ("pickle", "numpy", "rapidocr", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "run.py"
    script.write_text(
        "from flow_grpo.text_maps.reader import make_reader\n"
        "with make_reader('rapidocr', num_workers=1):\n"
        "    print('built')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "built\n", done.stderr[-2000:]


def test_workers_do_without_torch():
    code = (
        "import sys, flow_grpo.text_maps.process as p, flow_grpo.text_maps.box_judge as b; p.make_engine('rapidocr'); "
        "b.BoxJudge(0.5, 1.0, 0.75, 0.0, False, 'flow_grpo')([], ['A']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
