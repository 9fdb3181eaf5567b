"""Launch buttons only where git has the page's notebook: those of other studies share one."""


def withhold(app, page, template, context, doctree):
    """A page in a folder, as `retina/performance`, has no notebook at that path."""
    if "/" in page:
        kept = [b for b in context["header_buttons"] if b.get("label") != "launch-buttons"]
        context["header_buttons"] = kept


def setup(app):
    # After the theme has made the buttons, at 501.
    app.connect("html-page-context", withhold, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
