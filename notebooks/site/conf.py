"""How Sphinx makes the site from the copy that `notebooks/run.py --site DIR` makes."""

project = "enn_np"
copyright = "The enn_np authors, MIT"
html_title = "enn_np: a recurrent network with a Hebbian memory"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
html_theme = "furo"
html_favicon = "icon.svg"
html_static_path = html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
exclude_patterns = ["enn_np"]
highlight_language = "none"  # of a block that names none
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
nb_render_markdown_format = "gfm"  # of cells that show a table
suppress_warnings = ["mystnb.unknown_mime_type"]  # a second form of what is shown
