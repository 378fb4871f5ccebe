"""Every architecture of timm and transformers, built at its smallest and explained.

``python -m tests.sweep timm`` (or ``transformers``) builds each with random weights, checks what
the library promises, writes a line of JSON for it under ``docs/sweep/``, and from these lines the
table ``docs/sweep_timm.md``, which is not committed, and the page ``docs/models.md``.

====================  =========================================================================
``cases``             what a suite hands over: a model with inputs, and what is known of it
``columns``           what is checked of one model
``results``           what was found, as lines of JSON
``runner``            one process for each model, with limits of time and memory
``tables``            from results to the table of a suite
``models_page``       from results to ``docs/models.md``
``softmax_attention`` whether a model computes softmax attention, observed without this library
``timm_models``       the suite of timm
====================  =========================================================================
"""
