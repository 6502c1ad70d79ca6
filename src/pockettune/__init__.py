"""Pocket-sized models, tuned on your own data. Heavy libraries load only when a verb that needs them is called."""

from pockettune.costs import plot_break_even, should_i_tune
from pockettune.environment import precision, preflight
from pockettune.evaluation import compare, compare_by, evaluate, score_completions, write_run_card
from pockettune.export import check_export, merge
from pockettune.generation import generate, render
from pockettune.gguf_files import export_gguf, export_gguf_adapter
from pockettune.inspection import plot_by, plot_loss, plot_scores, show_answers, show_example, show_memory
from pockettune.litert import export_litertlm
from pockettune.models import load_model, save_model
from pockettune.rows import load_rows, save_rows, split_rows, to_dataset
from pockettune.teacher import label_rows
from pockettune.training import make_trainer
