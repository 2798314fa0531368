"""The report as people read it: on a terminal, as Markdown in a pull request, as an HTML page. Values in, text out."""
