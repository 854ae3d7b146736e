"""The nouns that everything speaks: Example, Batch, Model.

The names load on first use, so that `mmjax.types.errors` and `mmjax.types.config` come without JAX.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from mmjax.types.batch import Batch, Media, Queries, Text
    from mmjax.types.errors import ExampleError, UserError
    from mmjax.types.example import Example, Medium, Part, Preference, Source, Turn, ask
    from mmjax.types.model import Model

__all__ = [
    "Batch",
    "Example",
    "ExampleError",
    "Media",
    "Medium",
    "Model",
    "Part",
    "Preference",
    "Queries",
    "Source",
    "Text",
    "Turn",
    "UserError",
    "ask",
]
