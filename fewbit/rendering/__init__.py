"""The report as people read it: Markdown for a pull request, one HTML page for a team. Values in, text out."""
