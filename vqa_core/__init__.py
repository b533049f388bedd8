"""``vqa_core``: the package that every notebook of *Asking Pictures Questions* calls.

Rooms, in the order in which they may import from one another::

    data → encoders → fusion → heads → model → training → evaluation / explain → experiments → figures

``import vqa_core`` is light: torch and transformers are imported only by the modules that use them.
"""

__version__ = "0.1.0"
