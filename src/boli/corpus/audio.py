"""A recording of any format → 16 kHz mono, block by block, so that hours fit in a little memory.

libsndfile reads wav, flac, ogg, opus and mp3. What it cannot read goes to ffmpeg (the system's, or
the one that the extra boli[speech] installs), a process that may open that one file and nothing
that the file names.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from boli.errors import CorpusError

Floats = NDArray[np.float32]

RATE_HZ = 16_000
BLOCK_SECONDS = 5
LOWEST_HZ, HIGHEST_HZ, MOST_CHANNELS = 4_000, 768_000, 32
LOUDEST = 1e4  # of full scale; a float wav may go beyond 1, but not so far
LONGEST_WAV_HEADER_BYTES = 1 << 16
# Containers of one file each: no playlists, no lists of files, no addresses.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpeg,mpegts,ogg,rm,tta,w64,wav,wv"
)
EXTENSIONS = frozenset(  # of files that are recordings
    f".{name}"
    for name in ("wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "mp4", "aac", "amr", "3gp")
) | {".wma", ".webm", ".mka", ".aif", ".aiff", ".caf"}


def read_blocks(path: Path) -> Iterator[Floats]:
    """Yield a recording as 16 kHz mono float32, about five seconds at a time.

    A wav file that ends before its header says so, as recorders leave it when power goes, gives
    what is there. In other formats an error in the middle comes after the blocks before it.

    Raises:
        CorpusError: the recording is missing, empty, or cannot be decoded.
    """
    if not path.is_file():
        raise CorpusError(f"there is no recording at {path}", "check the path")
    try:
        empty = not path.stat().st_size
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}", "check the path") from None
    if empty:
        raise CorpusError(f"{path} is empty", "copy it again from the recorder")
    heard = 0
    for block in _decoded(path):
        heard += block.size
        if block.size:
            yield block
    if not heard:
        raise CorpusError(f"{path} holds no sound", "copy it again from the recorder")


def read_whole(path: Path, most_seconds: float) -> Floats:  # (samples,)
    """Return a short recording at once.

    Raises:
        CorpusError: it cannot be decoded, or is longer than that.
    """
    parts: list[Floats] = []
    size = 0
    for block in read_blocks(path):
        parts.append(block)
        size += block.size
        if size > most_seconds * RATE_HZ:
            raise CorpusError(
                f"{path} is longer than {most_seconds:g} s", "cut it into sentences first"
            )
    return np.concatenate(parts)


def soundfile_module() -> Any:
    """Return the module soundfile.

    Raises:
        CorpusError: it is not installed.
    """
    try:
        import soundfile
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: without libsndfile
        raise CorpusError(
            f"recordings cannot be read: {error}", "pip install 'boli[speech]'"
        ) from None
    return soundfile


def ffmpeg_program() -> str | None:
    """Return the path of ffmpeg: the system's, else that of the wheel; None where there is none."""
    found = shutil.which("ffmpeg")
    if found is None:
        try:
            import imageio_ffmpeg

            found = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError):  # RuntimeError: its wheel has none for this machine
            return None
    return found


def _decoded(path: Path) -> Iterator[Floats]:
    soundfile = soundfile_module()
    try:
        file = path.open("rb")
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}", "check the path") from None
    with file:
        try:
            sound = soundfile.SoundFile(_Nameless(file, _finished_wav_header(file)))
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        else:
            with sound:
                if sound.frames or sound.format in ("WAV", "WAVEX"):
                    yield from _resampled(path, sound, soundfile)
                    return
            reason = "it holds no sound"
    yield from _by_ffmpeg(path, reason)


class _Nameless:
    """An open file for soundfile, with other bytes in the place of its first ones.

    It has no name, because soundfile asks for a sampling rate wherever a name ends in .raw.
    """

    def __init__(self, file: BinaryIO, header: bytes) -> None:
        self._file, self._header = file, header
        file.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        data = self._file.read(size)
        return self._header[start : start + len(data)] + data[max(0, len(self._header) - start) :]


def _finished_wav_header(file: BinaryIO) -> bytes:
    """Return the header that a wav file would have if its recorder had finished it.

    A recorder writes the sizes last. Where power went before, they are those of an empty
    recording, although samples follow. Empty: the file is no such wav, and needs no mending.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = file.read(LONGEST_WAV_HEADER_BYTES)
    if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
        return b""
    if abs(struct.unpack_from("<I", header, 4)[0] + 8 - size_bytes) <= 1:  # a byte to make it even
        return b""
    at = 12
    while at + 8 <= len(header):
        name, chunk_bytes = struct.unpack_from("<4sI", header, at)
        at += 8
        if name == b"data":
            if chunk_bytes:
                return b""  # libsndfile reads as much of it as is there
            data_bytes = min(size_bytes - at, 0xFFFFFFFF)
            riff_bytes = min(size_bytes - 8, 0xFFFFFFFF)
            sizes = struct.pack("<I", riff_bytes), struct.pack("<I", data_bytes)
            return header[:4] + sizes[0] + header[8 : at - 4] + sizes[1]
        at += chunk_bytes + chunk_bytes % 2
    return b""


def _resampled(path: Path, sound: Any, soundfile: Any) -> Iterator[Floats]:
    import soxr

    if not LOWEST_HZ <= sound.samplerate <= HIGHEST_HZ or sound.channels > MOST_CHANNELS:
        raise CorpusError(
            f"{path} says it has {sound.channels} channels at {sound.samplerate} Hz",
            f"give at most {MOST_CHANNELS} channels at {LOWEST_HZ} to {HIGHEST_HZ} Hz; "
            "its header may be damaged",
        )
    frames = BLOCK_SECONDS * min(sound.samplerate, 48_000)
    stream = None
    if sound.samplerate != RATE_HZ:
        stream = soxr.ResampleStream(sound.samplerate, RATE_HZ, 1, dtype="float32")
    read = 0
    while True:
        try:
            block = sound.read(frames, dtype="float32", always_2d=True)  # (frames, channels)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise CorpusError(
                f"{path} cannot be decoded after {read / sound.samplerate:.1f} s: "
                f"{getattr(error, 'error_string', error)}",
                "copy it again from the recorder, or cut off what is damaged",
            ) from None
        read += len(block)
        last = len(block) < frames
        mono = _sound_of(block)
        yield mono if stream is None else stream.resample_chunk(mono, last=last)
        if last:
            return


def _sound_of(block: Floats) -> Floats:  # (frames, channels) → (frames,)
    mono = block[:, 0] if block.shape[1] == 1 else block.mean(1)
    finite = np.nan_to_num(mono, nan=0.0, posinf=0.0, neginf=0.0)
    return np.ascontiguousarray(np.clip(finite, -LOUDEST, LOUDEST), dtype=np.float32)


def _by_ffmpeg(path: Path, reason: str) -> Iterator[Floats]:
    """Yield what ffmpeg makes of a file; `reason` is why libsndfile could not read it."""
    program = ffmpeg_program()
    if program is None:
        raise CorpusError(
            f"{path} cannot be decoded: {reason}",
            "if it is a recording of another format: apt install ffmpeg, "
            "or pip install 'boli[speech]', which brings one for most machines",
        )
    command = [program, "-nostdin", "-v", "error"]
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", FORMATS]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-vn", "-sn", "-dn"]
    command += ["-f", "f32le", "-ac", "1", "-ar", str(RATE_HZ), "-"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        read = 0
        try:
            while data := process.stdout.read(BLOCK_SECONDS * RATE_HZ * 4):
                block = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float32)
                read += block.size
                yield _sound_of(block[:, None])
            status = process.wait()
        finally:
            process.kill()  # nothing, where it has ended
            process.wait()
            process.stdout.close()
        if status or not read:
            errors.seek(0)
            lines = errors.read(4096).decode(errors="replace").strip().splitlines()
            told = lines[-1].replace(f"file:{path}", "").strip(": ")[:200] if lines else reason
            raise CorpusError(
                f"{path} cannot be decoded after {read / RATE_HZ:.1f} s: {told}",
                "give a recording: wav, flac, mp3, ogg or what ffmpeg reads",
            )
