"""mmjax: train, align, evaluate and run multimodal large language models in JAX."""
