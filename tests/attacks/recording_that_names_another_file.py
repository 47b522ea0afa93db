"""A recording that is a playlist makes the decoder read other files, or call an address.

Whoever hands recordings to a site wants a file beyond them: a playlist with the name of a
recording, which ffmpeg would follow to any file that it may read, or to a server that learns
who opened it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from attack import Outcome, boli

from boli.corpus.audio import RATE_HZ, ffmpeg_program

PROMISE = "Decoding a recording opens that one file, and no file or address that it names."
SECRET_SECONDS, HONEST_SECONDS = 7, 3
CONCAT = "ffconcat version 1.0\nfile {}\n"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:7,\n{}\n#EXT-X-ENDLIST\n"


def attack(folder: Path, *, fast: bool) -> Outcome:
    import soundfile

    program = ffmpeg_program()
    assert program is not None, "this attack needs ffmpeg"
    noise = 0.1 * np.random.default_rng(0).standard_normal(SECRET_SECONDS * RATE_HZ)
    soundfile.write(folder / "secret.mp3", noise, RATE_HZ)
    honest = folder / "honest.m4a"
    seconds = ["-t", str(HONEST_SECONDS)]
    subprocess.run(
        [program, "-v", "error", "-i", folder / "secret.mp3", *seconds, honest], check=True
    )
    with listening() as (port, calls):
        local, remote = ["secret.mp3", str(folder / "secret.mp3")], f"http://127.0.0.1:{port}/x.mp3"
        disguises = [
            *(("mp3", CONCAT.format(name)) for name in local),
            ("mp3", CONCAT.format(remote)),
            *(("m3u8", HLS.format(name)) for name in (*local, remote)),
        ]
        if not fast:
            names = ("wav", "m4a", "3gp", "amr", "ogg", "flac", "aiff", "wma", "webm", "m3u")
            disguises += [(name, text) for name in names for _, text in disguises]
        playlists = []
        for number, (extension, text) in enumerate(disguises):
            playlists.append(folder / f"interview-{number}.{extension}")
            playlists[-1].write_text(text)
        # Names that ffmpeg would take for an address or for several files.
        for name in (f"concat:{local[0]}|{local[0]}", f"tcp:127.0.0.1:{port}.mp3"):
            playlists.append(folder / name)
            playlists[-1].write_text(CONCAT.format("secret.mp3"))
        done = boli(
            *("speech", "transcribe", untrained_model(folder), *playlists, honest),
            home=folder / "home",
        )
        called = len(calls)
        followed = control(program, playlists)
        called_in_control = len(calls) - called
    skipped = sum(line.startswith("skipped: ") for line in done.stderr.splitlines())
    heard = float(done.stderr.strip().splitlines()[-1].split()[0])
    return Outcome(
        refused=done.returncode == 0
        and skipped == len(playlists)
        and heard < HONEST_SECONDS + 1
        and not called,
        observed=f"{skipped} of {len(playlists)} playlists were refused, {heard} s of sound were "
        f"read (the honest recording has {HONEST_SECONDS} s), {called} calls to the server",
        control=f"ffmpeg with every protocol allowed gave {followed:.0f} s of the secret recording "
        f"away and called the server {called_in_control} times"
        if followed >= SECRET_SECONDS and called_in_control
        else "",
    )


def control(program: str, playlists: list[Path]) -> float:
    """Return the seconds of sound that an ffmpeg which may open anything reads from playlists."""
    read = 0
    for path in playlists:
        command = [program, "-nostdin", "-v", "error", "-protocol_whitelist", "file,http,tcp"]
        command += ["-safe", "0"] if path.read_text().startswith("ffconcat") else []
        command += ["-i", f"file:{path}", "-f", "s16le", "-"]
        read += len(subprocess.run(command, capture_output=True, check=False).stdout)
    return read / 2 / RATE_HZ


@contextlib.contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """Give a port of this machine, and what was asked there."""
    calls: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    peer, _ = server.accept()
                    with peer:
                        calls.append(peer.recv(1000))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1], calls
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def untrained_model(folder: Path) -> Path:
    """Make a recognizer that has hardly learned anything."""
    from boli.corpus.recognizer import save_recognizer
    from boli.corpus.recognizer_training import Clip, train

    noise = np.random.default_rng(0).standard_normal(RATE_HZ).astype(np.float32)
    path = folder / "model.safetensors"
    save_recognizer(train([Clip(noise, "हमर मोर")], language="hne", steps=1), path)
    return path
