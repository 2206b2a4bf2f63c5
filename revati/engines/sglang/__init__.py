"""SGLang: official plug-ins, nothing of the wheel is changed."""
