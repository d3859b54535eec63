"""The job `cost`: what both networks cost, or those of the paper."""

from alite_jax.counting.comparison import configured_costs, paper_matrix
from alite_jax.jobs.command import Command
from alite_jax.pages.cost_table import matrix_table, networks_table


def run(command: Command) -> None:
    """Prints the table that `--table` names in the form of `--format`."""
    layout = command.flags.format
    if command.flags.table == "paper":
        print(matrix_table(paper_matrix(), layout))
    else:
        print(networks_table(*configured_costs(command.config()), layout))
