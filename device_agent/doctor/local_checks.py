"""Checks of the home: permissions, disk, trust anchors, key, certificate, hooks. They only read."""

import os
import shlex
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from device_agent import times
from device_agent.apps.control import SOCKET_NAME
from device_agent.doctor.findings import Finding, Patient, State
from device_agent.doctor.health import problem_of
from device_agent.enrollment.pending_enrollment import pending_note
from device_agent.hooks.deployment_marks import HookState, read_marks, state_of
from device_agent.store.atomic_files import read_file
from device_agent.store.bootstrap import bootstrap_of
from device_agent.store.device_key import load_key, spki_der
from device_agent.store.hardware_key import check
from device_agent.store.key_store import FILE, use_in_children
from device_agent.store.root_rollover import load_anchors
from fleet.est_client.certificate_checks import lifetime_of
from fleet.est_client.errors import ClientError
from fleet.est_client.validity import has_expired
from fleet.wire.spki import spki_of

BYTES_FREE_MIN = 1024 * 1024  # a renewal writes some 20 KB
FILES_FREE_MIN = 16
ANCHOR_DAYS_MIN = 90
_OTHERS = 0o077
_OPEN_TO_GROUP = {SOCKET_NAME}  # programs of other users talk to the agent


def permissions_are_tight(patient: Patient) -> Iterator[Finding]:
    """The home and its secrets are their owner's alone."""
    home = patient.home.stat()
    if os.geteuid() not in (0, home.st_uid):
        detail = f"{patient.home} belongs to user {home.st_uid}, and this is user {os.geteuid()}."
        yield Finding("permissions", State.FAILED, detail, "Run it as the user that the agent runs as, or as root.")
        return
    loose, foreign = [], []
    for path in [patient.home, *patient.home.rglob("*")]:
        found = path.lstat()
        if found.st_uid != home.st_uid:
            foreign.append(path)
        is_secret = path.name.endswith("key.pem") or path == patient.home
        forbidden = _OTHERS if is_secret and path != patient.home else stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISLNK(found.st_mode) and path.name not in _OPEN_TO_GROUP and found.st_mode & forbidden:
            loose.append(path)
    if loose:
        advice = f"Run: chmod -R go-rwx {shown(patient.home)}"
        yield Finding(
            "permissions", State.FAILED, f"Other users can read or change {_listed(loose, patient.home)}.", advice
        )
    if foreign:
        advice = f"Run: chown -hR --reference={shown(patient.home)} {shown(patient.home)}"
        detail = f"Not the home's owner owns {_listed(foreign, patient.home)}: the agent may be unable to write there."
        yield Finding("permissions", State.FAILED, detail, advice)
    if not loose and not foreign:
        yield Finding("permissions", State.OK, "The home and its key are their owner's alone.")


def disk_has_room(patient: Patient) -> Iterator[Finding]:
    found = os.statvfs(patient.home)
    free = found.f_bavail * found.f_frsize
    if found.f_flag & os.ST_RDONLY:
        detail = "The home is on a file system that is mounted read-only."
        yield Finding(
            "disk", State.FAILED, detail, "Remount it read-write; if the kernel did it, check the medium: dmesg."
        )
    elif free < BYTES_FREE_MIN or (found.f_files and found.f_favail < FILES_FREE_MIN):
        detail = f"{free // 1024} KiB and {found.f_favail} files are free where the home is."
        yield Finding("disk", State.FAILED, detail, "Free some: a renewal cannot be stored.")
    else:
        yield Finding("disk", State.OK, f"{free // (1024 * 1024)} MiB are free where the home is.")


def anchors_are_valid(patient: Patient) -> Iterator[Finding]:
    """ca.pem holds a root that is valid for a while."""
    file, advice = patient.config.ca_file, "Get it again: fleet ca export, and copy it there."
    try:
        anchors = load_anchors(file)
    except (ClientError, OSError) as error:
        detail = error.message if isinstance(error, ClientError) else f"{file} cannot be read: {error.strerror}."
        yield Finding("anchors", State.FAILED, detail, advice)
        return
    last = max((lifetime_of(anchor).not_after for anchor in anchors), default=patient.now)
    if last <= patient.now and patient.clock_is_set:
        yield Finding("anchors", State.FAILED, f"Every root in {file} expired by {times.shown(last)}.", advice)
    elif last - patient.now < timedelta(days=ANCHOR_DAYS_MIN) and patient.clock_is_set:
        detail = f"The last root in {file} expires on {times.shown(last)}."
        yield Finding("anchors", State.WARNING, detail, "Roll the root over in the fleet; renewals bring the new one.")
    else:
        yield Finding("anchors", State.OK, f"{len(anchors)} in {file.name}, valid until {times.shown(last)}.")


_IN_CLEAR = (
    "What is kept in bootstrap is a file: anybody who copies the disk can enroll with it, without the key store."
)


def key_store_answers(patient: Patient) -> Iterator[Finding]:
    """The TPM or token that has the private keys can be used; nothing is said of keys in files."""
    store = patient.config.key_store
    try:
        use_in_children(store)
        if store.kind != FILE:
            check(store)
            yield Finding("key store", State.OK, f"Keys are kept in {store.kind}, which answers.")
            if bootstrap_of(patient.home) is not None:
                yield Finding("key store", State.WARNING, _IN_CLEAR, "Remove the folder bootstrap if that may not be.")
    except ClientError as error:
        yield Finding("key store", State.FAILED, error.message, error.advice)


def key_matches(patient: Patient) -> Iterator[Finding]:
    """The private key belongs to the certificate."""
    identity = patient.current or patient.candidate
    if identity is None:
        damaged = [slot.name for slot in sorted(patient.home.glob("slot-*")) if any(slot.glob("meta.json"))]
        detail, state = "There is no certificate yet.", State.SKIPPED
        if damaged:
            detail = f"Key and certificate in {', '.join(damaged)} do not match what was written there."
            state = State.FAILED
        yield Finding("key", state, detail, f"Run: device-agent --home {shown(patient.home)} enroll")
        return
    again = f"With a new token, run: device-agent --home {shown(patient.home)} enroll --again"
    try:
        certificate = x509.load_pem_x509_certificates(read_file(identity.certificate_file))[0]
        matches = spki_of(certificate.public_key()) == spki_der(load_key(identity.key_file, patient.config.key_store))
    except (ClientError, ValueError, OSError) as error:
        yield Finding("key", State.FAILED, f"{identity.slot} cannot be read: {error}", again)
        return
    if matches:
        yield Finding("key", State.OK, f"The key in {identity.slot} belongs to its certificate.")
    else:
        yield Finding("key", State.FAILED, f"The key in {identity.slot} belongs to another certificate.", again)


def certificate_is_valid(patient: Patient) -> Iterator[Finding]:
    """Name, chain, use and dates of the certificate."""
    identity = patient.current or patient.candidate
    if identity is None:
        note = pending_note(patient.home)
        advice = f"Run: device-agent --home {shown(patient.home)} enroll"
        yield Finding("certificate", State.FAILED, note or "There is no certificate yet.", advice)
        return
    info = identity.certificate
    left = (info.not_after - patient.now).total_seconds() / 86400
    if problem := problem_of(patient.config, identity, patient.now):
        expired = has_expired(identity.lifetime, patient.now)
        advice = "If the clock is right, enroll again with a new token." if expired else "Check ca.pem and device_id."
        yield Finding("certificate", State.FAILED, problem, advice)
    elif patient.current is None:
        advice = f"Run: device-agent --home {shown(patient.home)} run"
        yield Finding("certificate", State.WARNING, "The only certificate has not been used yet.", advice)
    elif not patient.clock_is_set:
        yield Finding("certificate", State.SKIPPED, "Its dates cannot be judged by this clock.")
    else:
        detail = f"Serial {info.serial} of {info.device_id}, {left:.1f} days left."
        yield Finding("certificate", State.OK, detail)


def hooks_have_deployed(patient: Patient) -> Iterator[Finding]:
    fingerprint = patient.current.certificate.fingerprint if patient.current else None
    marks = read_marks(patient.home)
    for hook in patient.config.hooks:
        state, text = state_of(hook, marks, fingerprint)
        deploy = f"device-agent --home {shown(patient.home)} deploy"
        match state:
            case HookState.FAILED:
                advice = f"Mend it, then: {deploy} {hook.name}"
                yield Finding("hook", State.FAILED, f"{hook.name} {text}.", advice)
            case HookState.WAITING:
                yield Finding("hook", State.WARNING, f"{hook.name}: {text}.", f"Run: {deploy}")
            case HookState.DONE:
                yield Finding("hook", State.OK, f"{hook.name}: {text}.")


def shown(home: Path) -> str:
    return shlex.quote(str(home))


def _listed(paths: list[Path], home: Path) -> str:
    names = [str(path.relative_to(home)) if path != home else "the home" for path in paths[:3]]
    return ", ".join(names) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
