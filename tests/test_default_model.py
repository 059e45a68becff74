"""`--model auto`, through the Hub's real client against a Hub on this machine: which model labels,
what is said of it, what is recorded, and how long it takes where nobody answers.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from pipeline import Settings
from pipeline.plan.choice import ModelChoice, choose_model
from pipeline.plan.default_model import DEFAULT_MODEL, published
from tests.helpers import Command, photo
from tests.hub_server import DEFAULT_COMMIT, IMPATIENT, UNREACHABLE, Hub

NO_NETWORK = "cannot be reached"
SMALL = "labelling with the small model in the package"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(1).save(folder / "1.jpg")
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "labels.parquet"


def label(hub: Hub, photos: Path, out: Path, *more: Any, **settings: Any) -> str:
    """Label, and return what was said on stderr."""
    ran = hub.run(photos, "--out", out, "--workers", 0, "--audit", 0, *more, **settings)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def choice_of(table: Path) -> dict[str, Any]:
    record = json.loads(pq.read_metadata(table).metadata[b"label_images"])
    choice: dict[str, Any] = record["choice"]
    return choice


@pytest.mark.slow
def test_the_first_run_downloads_the_pinned_default_and_the_next_asks_nobody(
    small_hub: Hub, photos: Path, out: Path
) -> None:
    said = label(small_hub, photos, out)
    assert f"--model auto: {DEFAULT_MODEL}, the default of label-images 0.1.0" in said
    assert any("model.safetensors" in request for request in small_hub.downloads())
    assert all(DEFAULT_COMMIT in request for request in small_hub.server.requests), "never a branch"
    choice = choice_of(out)
    assert (choice["model"], choice["because"]) == (
        DEFAULT_MODEL,
        "the default of label-images 0.1.0",
    )
    run_json = Job(out).read_run()
    assert run_json
    assert run_json["settings"]["choice"] == choice

    small_hub.server.requests.clear()
    photo(2).save(photos / "2.jpg")
    said = label(small_hub, photos, out)
    assert "as " + str(out) + " has it (the default of label-images 0.1.0)\n" in said
    another = out.with_name("another.parquet")
    label(small_hub, photos, another)
    assert choice_of(another) == choice
    assert small_hub.server.requests == []


@pytest.mark.slow
def test_the_cache_needs_no_network_and_no_word(small_hub: Hub, photos: Path, out: Path) -> None:
    ran = small_hub.run("models", "fetch")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == DEFAULT_MODEL
    assert ran.stdout.splitlines()[-1] == "  offline  label-images PATH... --out TABLE"
    for number, more in enumerate(({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": UNREACHABLE})):
        table = out.with_name(f"{number}.parquet")
        assert SMALL not in label(small_hub, photos, table, **more)
        assert choice_of(table)["model"] == DEFAULT_MODEL
    small_hub.server.requests.clear()
    assert small_hub.run("models", "fetch").returncode == 0
    assert small_hub.server.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "the Hub is not asked, since HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": UNREACHABLE}, f"the Hub at {UNREACHABLE} cannot be reached"),
    ],
)
def test_without_network_and_cache_the_embedded_model_labels_and_says_so(
    small_hub: Hub, photos: Path, out: Path, more: dict[str, str], why: str
) -> None:
    said = label(small_hub, photos, out, "--quiet", **more)
    assert len(said.splitlines()) == 1
    for part in (SMALL, why, "`label-images models fetch`", "--model embedded", f"{out} keeps it"):
        assert part in said
    choice = choice_of(out)
    assert choice["model"] == "embedded"
    assert why in choice["because"]

    # The table stays with it, whatever the network does, and says how to change that.
    small_hub.server.requests.clear()
    photo(2).save(photos / "2.jpg")
    said = label(small_hub, photos, out)
    assert "1 new, 1 carried" in said
    assert f"the default is a better one: --model {DEFAULT_MODEL} labels all again" in said
    assert choice_of(out) == choice
    assert small_hub.server.requests == []
    assert SMALL not in said

    label(small_hub, photos, out, "--model", DEFAULT_MODEL)
    assert choice_of(out)["model"] == DEFAULT_MODEL
    assert "because" not in choice_of(out), "somebody named it"


def test_a_table_keeps_a_model_that_was_named(
    small_hub: Hub, photos: Path, out: Path, small_model: Path
) -> None:
    label(small_hub, photos, out, "--model", small_model)
    photo(2).save(photos / "2.jpg")
    said = label(small_hub, photos, out)
    assert f"--model auto: {small_model}, as {out} has it\n" in said
    assert small_hub.server.requests == []


@pytest.mark.slow
def test_an_unfinished_first_job_keeps_its_model(small_hub: Hub, photos: Path, out: Path) -> None:
    for seed in (2, 3):
        photo(seed).save(photos / f"{seed}.jpg")
    arguments = (photos, "--out", out, "--workers", 0, "--batch-size", 1, "--max-runtime", "0.001")
    assert small_hub.run(*arguments, HF_HUB_OFFLINE="1").returncode == 6
    said = label(small_hub, photos, out)
    assert "--model auto: embedded, as the unfinished job has it" in said
    assert choice_of(out)["model"] == "embedded"
    assert small_hub.server.requests == []


@pytest.mark.slow
def test_a_hub_that_answers_slowly_is_not_waited_for(
    small_hub: Hub, photos: Path, out: Path
) -> None:
    small_hub.server.is_slow = True
    # The time that deciding takes beside importing the Hub's client, which other work may delay.
    timed = (
        "import time, huggingface_hub\nfrom huggingface_hub import get_hf_file_metadata\n"
        "from pipeline.plan import choice\nreally, say = choice.decide, print\n"
        "def decide():\n    started = time.monotonic()\n    decision = really()\n"
        "    say(f'decided in {time.monotonic() - started} s')\n    return decision\n"
        "choice.decide = decide"
    )
    ran = small_hub.run(photos, "--out", out, "--workers", 0, before=timed)
    assert f"{small_hub.url} cannot be reached (" in ran.stderr
    assert choice_of(out)["model"] == "embedded"
    decided = re.search(r"decided in ([\d.]+) s", ran.stdout)
    assert decided
    assert 1 < float(decided[1]) < 3


@pytest.mark.slow
def test_a_download_that_is_cut_goes_on(hub: Hub) -> None:
    """22 MB: the client writes them in pieces of 10."""
    hub.server.cuts_off, hub.server.cuts_once = "model.safetensors", True
    ran = hub.run("models", "fetch")
    assert ran.returncode == 0, ran.stderr
    downloads = [text for text in hub.downloads() if "model.safetensors" in text]
    assert len(downloads) == 2
    assert downloads[1].endswith(" bytes=10485760-"), "from where it was cut off"


@pytest.mark.slow
def test_a_download_that_breaks_off_labels_nothing(small_hub: Hub, photos: Path, out: Path) -> None:
    small_hub.server.cuts_off = "model.safetensors"
    ran = small_hub.run(photos, "--out", out, before=IMPATIENT)
    assert ran.returncode == 2
    for part in ("downloading", "run again", "--model embedded labels with the small one"):
        assert part in ran.stderr
    assert not out.exists()
    small_hub.server.cuts_off, small_hub.server.is_down = None, False
    label(small_hub, photos, out)
    assert choice_of(out)["model"] == DEFAULT_MODEL


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_download_is_refused_and_dropped(
    small_hub: Hub, photos: Path, out: Path, file: str
) -> None:
    small_hub.server.damages = file
    ran = small_hub.run(photos, "--out", out)
    assert ran.returncode == 2
    assert f"{file} arrived damaged" in ran.stderr
    small_hub.server.damages = None
    label(small_hub, photos, out)
    assert choice_of(out)["model"] == DEFAULT_MODEL


def test_git_s_hash_of_a_small_file_is_known(tmp_path: Path) -> None:
    from vit.checkpoints.hub import _proven
    from vit.errors import ModelError

    # git hash-object of a file that holds "hello\n"
    blob = tmp_path / "ce013625030ba8dba906f756967f9e9ca394464a"
    link = tmp_path / "config.json"
    link.symlink_to(blob)
    blob.write_bytes(b"hello\n")
    assert _proven(link) == link
    blob.write_bytes(b"hellO\n")
    with pytest.raises(ModelError, match=r"config\.json arrived damaged"):
        _proven(link)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("status", "why"), [(503, "503"), (404, "does not give it"), (403, "403")])
def test_a_hub_that_has_not_or_will_not(
    small_hub: Hub, photos: Path, out: Path, status: int, why: str
) -> None:
    small_hub.server.answers_with = status
    said = label(small_hub, photos, out)
    assert SMALL in said
    assert why in said
    assert choice_of(out)["model"] == "embedded"


@pytest.mark.slow
def test_a_branch_that_moves_changes_no_table(small_hub: Hub, photos: Path, out: Path) -> None:
    """The default is pinned; of another model the table remembers the commit."""
    label(small_hub, photos, out, "--model", "hf-hub:acme/vit")
    first = choice_of(out)["model"]
    assert first.endswith("a" * 40)
    small_hub.server.commits["main"] = "c" * 40
    small_hub.server.requests.clear()
    photo(2).save(photos / "2.jpg")
    label(small_hub, photos, out)
    assert choice_of(out)["model"] == first
    assert small_hub.server.requests == []
    # Offline too a name without a revision means what the cache knows of it.
    label(
        small_hub, photos, out.with_name("b.parquet"), "--model", "hf-hub:acme/vit", url=UNREACHABLE
    )
    assert choice_of(out.with_name("b.parquet"))["model"] == first


@pytest.mark.slow
def test_a_cache_that_another_program_filled_works_offline(
    hub: Hub, photos: Path, out: Path
) -> None:
    """As `hf download` does: it keeps no note of what the Hub has not."""
    assert hub.run("models", "fetch").returncode == 0
    for unasked in hub.home.glob("hub/models--*/.no_exist"):
        shutil.rmtree(unasked)
    label(hub, photos, out, HF_HUB_OFFLINE="1")
    assert choice_of(out)["model"] == DEFAULT_MODEL


@pytest.mark.slow
def test_proxies_and_mirrors_are_obeyed(small_hub: Hub, photos: Path, out: Path) -> None:
    mirror = "http://hub.invalid"  # which only the proxy knows
    label(small_hub, photos, out, url=mirror, HTTP_PROXY=small_hub.url, http_proxy=small_hub.url)
    assert choice_of(out)["model"] == DEFAULT_MODEL
    assert all(mirror in request for request in small_hub.server.requests)
    small_hub.server.requests.clear()
    shutil.rmtree(small_hub.home)
    proxy = {"HTTP_PROXY": UNREACHABLE, "http_proxy": UNREACHABLE}
    said = label(small_hub, photos, out.with_name("a.parquet"), **proxy)
    assert SMALL in said
    assert small_hub.server.requests == [], "a proxy that is away is not gone round"
    label(small_hub, photos, out.with_name("b.parquet"), **proxy, NO_PROXY="127.0.0.1")
    assert choice_of(out.with_name("b.parquet"))["model"] == DEFAULT_MODEL


def test_a_password_in_a_mirror_s_address_is_not_told(
    small_hub: Hub, photos: Path, out: Path
) -> None:
    small_hub.server.answers_with = 403
    mirror = small_hub.url.replace("//", "//me:secret@")
    said = label(small_hub, photos, out, url=mirror)
    assert f"the Hub at {small_hub.url} cannot be reached (" in said
    assert "secret" not in said + json.dumps(choice_of(out))


@pytest.mark.parametrize(("more", "is_shown"), [((), True), (("--quiet",), False)])
def test_a_download_has_a_bar_unless_all_is_to_be_quiet(
    small_hub: Hub, photos: Path, out: Path, more: tuple[str, ...], is_shown: bool
) -> None:
    # -1 is tqdm's for a terminal that does not look like one.
    allow = "import os\ndel os.environ['HF_HUB_DISABLE_PROGRESS_BARS']"
    words = (photos, "--out", out, "--workers", 0, *more)
    ran = small_hub.run(*words, before=allow, TQDM_POSITION="-1")
    assert ran.returncode == 0
    assert ("model.safetensors: 100%" in ran.stderr) == is_shown


@pytest.mark.slow
def test_photos_without_a_table_take_the_same_model(small_hub: Hub, photos: Path) -> None:
    ran = small_hub.run(photos, HF_HUB_OFFLINE="1")
    assert ran.returncode == 0
    assert SMALL in ran.stderr
    assert "keeps it" not in ran.stderr
    ran = small_hub.run(photos)
    assert "%  class " in ran.stdout, "the model on the Hub"
    assert f"--model auto: {DEFAULT_MODEL}" in ran.stderr


def test_plan_says_which_model_it_would_be(small_hub: Hub, photos: Path, out: Path) -> None:
    ran = small_hub.run("plan", photos, "--out", out, HF_HUB_OFFLINE="1")
    assert ran.returncode == 0
    assert SMALL in ran.stderr


def test_as_json_the_choice_is_an_event(small_hub: Hub, photos: Path, out: Path) -> None:
    said = label(small_hub, photos, out, "--log-json")
    events = [json.loads(line) for line in said.splitlines()]
    choice = next(event for event in events if event["event"] == "choice")
    assert choice["model"] == DEFAULT_MODEL
    assert choice["reason"] == "the default of label-images 0.1.0"


def test_fetch_offline_fails_at_once_with_one_reason(small_hub: Hub) -> None:
    started = time.monotonic()
    ran = small_hub.run("models", "fetch", url=UNREACHABLE)
    assert time.monotonic() - started < 5
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 2
    assert NO_NETWORK in ran.stderr


def test_the_nodes_of_a_cluster_get_the_driver_s_choice(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a labeller is made of names a model: nobody after the driver asks the network."""
    asked: list[str | None] = []

    def ready(settings: Settings, *_: object) -> Any:
        asked.append(settings.model)
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.run.ready_labeller", ready)
    from pipeline import label_images

    for model in (None, "auto"):
        with pytest.raises(KeyboardInterrupt):
            label_images(Settings(paths=(photos,), out=out, engine="ray", model=model))
    assert asked == ["embedded", "embedded"]


def test_a_table_that_remembers_no_model_means_the_embedded_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is of a version that had no other default; the network is not asked."""
    monkeypatch.setattr("pipeline.plan.choice.decide", pytest.fail)
    chosen = choose_model(Settings(), None, "a table's id")
    assert (chosen.settings.model, chosen.decision) == ("embedded", None)


def test_a_reason_is_remembered_and_is_no_part_of_a_choice() -> None:
    choice = ModelChoice("embedded", because="the Hub was away")
    assert ModelChoice.from_record(choice.to_record()) == choice == ModelChoice("embedded")
    assert "because" not in ModelChoice("embedded").to_record()


def test_the_default_model_is_one_that_loads_and_is_not_large() -> None:
    facts = published()
    assert facts.unsupported is None
    assert facts.size_mb < 350
    assert facts.top1
    assert facts.top1 > 84
    assert f"{facts.address}@{DEFAULT_COMMIT}" == DEFAULT_MODEL


def test_without_the_hub_in_the_tests(command: Command, photos: Path) -> None:
    """What tests/conftest.py sets: no test that names no model asks the network."""
    ran = command(photos)
    assert SMALL in ran.stderr
    assert "HF_HUB_OFFLINE" in ran.stderr
