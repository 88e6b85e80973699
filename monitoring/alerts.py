"""Tell somebody, once, when a run needs them; sent from where ``status.py --watch --alert FILE`` runs: compute nodes reach nobody.

    to:
      - command: [notify-send, "{title}", "{text}"]      # any program; words, no shell
      - ntfy: https://ntfy.sh/our-lab                    # the text as the body, the title as a header
      - webhook: https://chat.example.org/hook           # {"text": "title: text"} as JSON, what chat servers take
      - mail: somebody@example.org                       # through smtp, by default this host's own
        smtp: localhost
    complete: true                                       # runs that end well are told, too

One trouble of one attempt is told once, whoever watches; what could not be sent is tried again at the next look.
"""

from __future__ import annotations

import json
import re
import smtplib
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monitoring.overview import Overview, Standing
from monitoring.slurm_jobs import one_at_a_time
from pipeline.config import read_yaml
from pipeline.errors import UserError
from pipeline.files import read_json, write_json

TOLD = ".alerts.json"
PATIENCE = 20.0  # seconds for one message
TROUBLE = ("failed", "killed", "silent")


class Channel(BaseModel):
    """One way to reach somebody: exactly one of the four."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: list[str] | None = None
    ntfy: str | None = Field(None, pattern="^https?://")
    webhook: str | None = Field(None, pattern="^https?://")
    mail: str | None = Field(None, pattern="@")
    smtp: str = "localhost"

    @model_validator(mode="after")
    def _one(self) -> Channel:
        if sum(getattr(self, kind) is not None for kind in ("command", "ntfy", "webhook", "mail")) != 1:
            raise ValueError("names one of command, ntfy, webhook, mail")
        return self

    def send(self, title: str, text: str) -> None:
        """Raises OSError or SMTPException or CalledProcessError or TimeoutExpired where it did not arrive."""
        if self.command:
            words = [word.replace("{title}", title).replace("{text}", text) for word in self.command]
            subprocess.run(words, check=True, timeout=PATIENCE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        elif self.ntfy:
            self._post(self.ntfy, text.encode(), {"Title": title.encode("ascii", "replace").decode()})
        elif self.webhook:
            body = json.dumps({"text": f"{title}: {text}"}).encode()
            self._post(self.webhook, body, {"Content-Type": "application/json"})
        else:
            message = EmailMessage()
            message["Subject"], message["From"], message["To"] = title, self.mail, self.mail
            message.set_content(text)
            with smtplib.SMTP(self.smtp, timeout=PATIENCE) as server:
                server.send_message(message)

    def _post(self, address: str, body: bytes, headers: dict[str, str]) -> None:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=PATIENCE) as reply:
            reply.read(1)


class AlertConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    to: list[Channel] = Field(min_length=1)
    complete: bool = True


def read_alerts(path: Path) -> AlertConfig:
    """UserError where the file is not what the head of this module shows."""
    try:
        return AlertConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "to"
        raise UserError(
            f"{path}: '{where}': {first['msg'].lower()}. Valid keys: to (a list of command, ntfy, webhook or mail), complete."
        ) from None


class Alerts:
    """Sends what has not been told yet. ``root``: the runs root, which remembers what has been."""

    def __init__(self, config: AlertConfig, root: Path) -> None:
        self._config, self._file = config, root / TOLD

    def tell(self, overview: Overview) -> None:
        """Tell what is new; at the very first look nothing that has ended before is new."""
        with one_at_a_time(self._file.with_suffix(".lock")):
            kept = read_json(self._file)
            told: dict[str, Any] = dict(kept) if isinstance(kept, dict) else {}
            present = {key: (standing, text) for standing in overview.runs for key, text in self._troubles(standing)}
            for key, (standing, text) in present.items():
                if key not in told and (isinstance(kept, dict) or standing.alive) and not self._send(standing, text):
                    continue
                told[key] = text
            if told != kept:
                write_json(self._file, told)

    def _troubles(self, standing: Standing) -> Iterator[tuple[str, str]]:
        """(what makes it the same trouble at the next look, in words); numbers in it grow, so they do not count."""
        name = f"{standing.name} attempt {standing.attempts}"
        if standing.state in TROUBLE:
            yield f"{name} {standing.state}", "; ".join([standing.state, *standing.health])
        elif standing.state == "complete" and self._config.complete:
            yield f"{name} complete", f"complete at step {standing.step}"
        elif standing.state == "running":
            for sentence in standing.health:
                yield f"{name} {re.sub(r'[0-9.,%]+ ?(?:s|min|h|d)?', '#', sentence)}", sentence

    def _send(self, standing: Standing, text: str) -> bool:
        """Whether at least one channel took it; the others' troubles are said."""
        arrived = False
        for channel in self._config.to:
            try:
                channel.send(standing.name, text)
                arrived = True
            except (OSError, smtplib.SMTPException, subprocess.SubprocessError) as error:
                print(f"warning: an alert on {standing.name} was not sent: {error}", file=sys.stderr, flush=True)
        return arrived
