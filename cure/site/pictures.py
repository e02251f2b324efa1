"""Pictures of the site: every figure once, as lossless WebP (a third of its PNG), found again by its bytes."""

import base64
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image


def digest(png: bytes) -> str:
    """SHA-256 of the bytes of a PNG file."""
    return hashlib.sha256(png).hexdigest()


@dataclass(frozen=True)
class Picture:
    """A picture of the site: its path relative to the site's folder, and its size in pixels."""

    path: str
    width: int
    height: int


@dataclass
class Gallery:
    """The folder `figures/` of a site.

    Notebooks hold copies of the figures that they drew or show; `add` recognises them, so that no picture is stored
    twice.
    """

    folder: Path
    known: dict[str, Picture] = field(default_factory=dict)

    def add(self, png: bytes, name: str | None = None) -> Picture:
        """Store a PNG without loss of a pixel, unless it is there already.

        Parameters
        ----------
        png : bytes
            Content of a PNG file.
        name : str, optional
            Name of the stored file without its ending; by default the beginning of its hash.
        """
        key = digest(png)
        if key not in self.known:
            image: Image.Image = Image.open(io.BytesIO(png))
            if "A" in image.getbands() and image.getchannel("A").getextrema() == (255, 255):
                image = image.convert("RGB")
            file = self.folder / "figures" / f"{name or key[:12]}.webp"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, "WEBP", lossless=True, quality=75, method=4, exact=True)
            self.known[key] = Picture(f"figures/{file.name}", *image.size)
        return self.known[key]

    def add_encoded(self, text: str) -> Picture:
        """The same for a picture inside a notebook, which is Base64 text."""
        return self.add(base64.b64decode(text))
