"""Hugging Face models in and out. The names load on first use, so that importing `mmjax` stays light."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from mmjax.interop.image_size import with_image_size
    from mmjax.interop.lavis_writer import save_lavis
    from mmjax.interop.llava_writer import save_llava
    from mmjax.interop.minigpt4 import save_minigpt4
    from mmjax.interop.pretrained import Export, base_of, describe, from_pretrained, hf_forward, save_pretrained

__all__ = [
    "Export", "base_of", "describe", "from_pretrained", "hf_forward", "save_lavis", "save_llava", "save_minigpt4",
    "save_pretrained", "with_image_size",
]  # fmt: skip
