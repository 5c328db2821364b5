"""What the site does with pages that are also read in the repository.

A page links to files of the repository, such as `../config/grpo.py`. The site does not hold these files: it shows the name.
"""

import re

LINK_OUT_OF_DOCS = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+(?!docs/)[^)]+\)")


def on_page_markdown(markdown, page, config, files):
    depth = page.file.src_uri.count("/") + 1  # "../" from docs/, "../../" from a folder of it

    def outside(match):
        target = match[0].rpartition("](")[2][:-1]
        leaves = target.startswith("../" * depth)
        return f"`{match[1].strip('`')}`" if leaves else match[0]

    return LINK_OUT_OF_DOCS.sub(outside, markdown)
