from data import (  # noqa: F401
    TASKS,
    clean_set,
    corpus_set,
    task_of,
    tokenizer_of,
    training_set,
    with_template,
)
