"""The last step of the site, run by the renderer (`post-render` of _quarto.yml) with the folder of the pages in its environment.

Formulas become MathML, which every browser draws itself: no script, no font, no network. Without latex2mathml they stay as they are and load the
renderer's script. An author with a year becomes a link to the page of references, tables lose a first column that only counts their rows, and a few tags
get the roles that screen readers and keys expect. nbdev takes one `.py` off the names of files it copies, hence two.
"""
import html
import os
import re
from pathlib import Path

FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
LOADERS = re.compile(r'<script[^>]*src="[^"]*(?:katex|mathjax|polyfill)[^"]*"[^>]*>\s*</script>|<link[^>]*katex[^>]*>', re.I)
REFERENCE = re.compile(r'<li id="([\w-]+)" data-cite="([^"]*)"')
APART = re.compile(r'(<(script|style|pre|code|math|a|button|h[1-6]|head|nav|header|dialog)\b.*?</\2>|<[^>]*>)', re.S)

ROLES = ((re.compile(r'(<i class="bi [\w -]+") role="(?:img|button)?">'), r'\1 aria-hidden="true">'), # an icon; its link has the name
         (re.compile(r'(<a class="sidebar-item-toggle[^>]*) role="navigation"'), r'\1 role="button" tabindex="0"'),
         (re.compile(r'<nav class="navbar'), '<nav aria-label="Site" class="navbar'),
         (re.compile(r'<div class="toc-actions">'), '<div class="toc-actions" role="complementary" aria-label="Report">'),
         (re.compile(r'<th></th>'), '<td></td>'))
NAMED = re.compile(r'(<a [^>]*aria-label=")([^"]*)("[^>]*>)([^<>]+)(?=</a>)')

TABLE, ROW, FIRST = (re.compile(pattern, re.S) for pattern in
                     (r'<table\b[^>]*\bdataframe\b.*?</table>', r'<tr\b.*?</tr>', r'(<tr\b[^>]*>\s*)<(t[hd])\b([^>]*)>(.*?)</\2>\s*'))


def drop_counts(text):
    "The page without the first column of tables in which it has no head and only counts the rows from 0."
    def table(found):
        firsts = [FIRST.match(row) for row in ROW.findall(found[0])]
        cells = [first and first[4].strip() for first in firsts]
        counts = len(cells) > 1 and cells == ['', *map(str, range(len(cells) - 1))] and not any('span=' in first[3] for first in firsts)
        return ROW.sub(lambda row: FIRST.sub(r'\1', row[0], count=1), found[0]) if counts else found[0]
    return TABLE.sub(table, text)


def name_links(text):
    "The page with every link's label beginning with what is seen of it, for those who say it aloud."
    return NAMED.sub(lambda m: m[0] if m[4].strip().lower() in m[2].lower() else f'{m[1]}{m[4].strip()}: {m[2]}{m[3]}{m[4]}', text)


def draw_formulas(text, convert):
    "The page with its formulas as MathML, and without what would have loaded a script for them."
    def formula(found):
        display = 'block' if found[1] == 'display' else 'inline'
        return f'<span class="math {found[1]}">{convert(html.unescape(found[2]).strip(), display=display)}</span>'
    text, n = FORMULA.subn(formula, text)
    return LOADERS.sub('', text) if n else text


def link_citations(text, references, to):
    "The page with each author and year outside of links, code and headings linked to its reference; `references`: {key: pattern}."
    parts, last = [], 0
    def linked(plain):
        for key, pattern in references.items():
            plain = re.sub(rf'(?<![#>\w])({pattern})(?![^<]*</a>)', rf'<a href="{to}#{key}">\1</a>', plain)
        return plain
    for found in APART.finditer(text):
        parts += [linked(text[last:found.start()]), found[0]]
        last = found.end()
    return ''.join(parts) + linked(text[last:])


def main():
    out = Path(os.environ['QUARTO_PROJECT_OUTPUT_DIR']).resolve()
    try: from latex2mathml.converter import convert
    except ImportError: convert = None
    page = out / 'references.html'
    references = {k: html.unescape(p) for k, p in REFERENCE.findall(page.read_text(encoding='utf-8'))} if page.is_file() else {}
    for path in sorted(out.rglob('*.html')):
        before = after = path.read_text(encoding='utf-8')
        if convert: after = draw_formulas(after, convert)
        if path != page: after = link_citations(after, references, f'{"../" * (len(path.relative_to(out).parts) - 1)}references.html')
        for pattern, better in ROLES: after = pattern.sub(better, after)
        after = drop_counts(name_links(after))
        if after != before: path.write_text(after, encoding='utf-8')


if __name__ == '__main__': main()
