"""Signatures over a bundle's manifest, made and checked by ``ssh-keygen -Y``: the keys people have already.

The manifest lists the hash of every other entry, so signing it signs the whole bundle.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from rompatch.errors import BundleError

NAMESPACE = "rompatch-bundle"
_SECONDS = 120


def sign(manifest: bytes, key: Path) -> bytes:
    """The signature of *manifest* with the private key in the file *key* (or a public one whose private half the agent
    has). ``ssh-keygen`` asks for a passphrase on the terminal itself.

    Raises:
        BundleError: no ``ssh-keygen``, no such key, or it would not sign.
    """
    program = _program()
    if not key.is_file():
        raise BundleError(f"There is no key file {key}.", next_step="Name a private key, like ~/.ssh/id_ed25519.")
    with tempfile.TemporaryDirectory(prefix="rompatch-") as folder:
        text = Path(folder, "manifest")
        text.write_bytes(manifest)
        command = [program, "-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(text)]
        done = subprocess.run(command, capture_output=True, check=False)
        signature = Path(folder, "manifest.sig")
        if done.returncode or not signature.is_file():
            raise BundleError(
                f"The key {key} did not sign the bundle.",
                found=_last_line(done.stderr),
                next_step="Name a private key that `ssh-keygen -Y sign` can use; a passphrase is asked for on a "
                "terminal, or use ssh-agent.",
            )
        return signature.read_bytes()


def verify(manifest: bytes, signature: bytes, allowed_signers: Path) -> str:
    """Who signed *manifest*: the principal of *allowed_signers* whose key the signature is of.

    Raises:
        BundleError: no ``ssh-keygen``, no such file, signed by somebody else, or a signature of something else.
    """
    program = _program()
    if not allowed_signers.is_file():
        raise BundleError(
            f"There is no file of allowed signers {allowed_signers}.",
            next_step="Make one: a line `name@example.org ssh-ed25519 AAAA...` for each signer.",
        )
    with tempfile.TemporaryDirectory(prefix="rompatch-") as folder:
        file = Path(folder, "manifest.sig")
        file.write_bytes(signature)
        common = ["-s", str(file), "-n", NAMESPACE]
        found = _run([program, "-Y", "find-principals", "-s", str(file), "-f", str(allowed_signers)], b"")
        names = found.stdout.decode("utf-8", "replace").splitlines()
        if found.returncode or not names:
            raise BundleError(
                "The bundle is signed by somebody whom the file of allowed signers does not name.",
                expected=f"a signer in {allowed_signers}",
                found=_last_line(found.stderr),
                next_step="Add the signer's public key to that file if you trust it.",
            )
        for name in names:
            command = [program, "-Y", "verify", "-f", str(allowed_signers), "-I", name, *common]
            if _run(command, manifest).returncode == 0:
                return name
        raise BundleError(
            "The bundle's signature is not one of its manifest: it was signed for another bundle, or for another use, "
            "or the content was changed afterwards.",
            expected=f"a signature by {names[0]} in the namespace {NAMESPACE}",
            next_step="Get the bundle again from where it came.",
        )


def _run(command: list[str], text: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=text, capture_output=True, check=False, timeout=_SECONDS)


def _program() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        raise BundleError(
            "Signatures are made and checked by ssh-keygen, and there is none on this machine.",
            expected="ssh-keygen of OpenSSH 8.2 or later on the PATH",
            next_step="Install the OpenSSH client, or leave the signature out.",
        )
    return found


def _last_line(text: bytes) -> str:
    return (text.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
