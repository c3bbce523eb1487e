"The site: one notebook run and the site built by the command, then read page by page and opened in a browser."
import base64
import functools
import http.server
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def reproduced(tmp_path_factory):
    "The folder and what the command wrote to standard error."
    out = tmp_path_factory.mktemp('reproduce')
    command = [sys.executable, '-c', 'import sys; from cxr_acgan.cli import main; sys.exit(main())', 'reproduce', 'data', 'vae', '--out', str(out)]
    env = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'} # in which a kernel does not capture what C++ writes
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture(scope='session')
def site(reproduced):
    return reproduced[0] / 'site'


def test_reproduce(reproduced):
    out, errors = reproduced
    assert sorted(p.name for p in (out / 'notebooks').iterdir()) == ['00_data.ipynb', '03_vae.ipynb'] and (out / 'site' / 'index.html').is_file()
    assert [line for line in errors.splitlines() if line.strip() and '%|' not in line] == [] # one progress bar, no log


class Page(HTMLParser):
    "Ids, links and pictures of a page."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.images, self.sources = set(), [], [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag == 'img': self.images.append(attrs)
        if tag in ('script', 'link', 'source') and (attrs.get('src') or attrs.get('href')): self.sources.append(attrs.get('src') or attrs['href'])


@pytest.fixture(scope='session')
def pages(site):
    return {p.relative_to(site).as_posix(): Page(p) for p in sorted(site.rglob('*.html')) if 'site_libs' not in p.parts}


def notebooks():
    from cxr_acgan.cli import page_name
    return {page_name(p.relative_to(ROOT / 'nbs')).with_suffix('.html').as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}


def test_a_page_for_each_notebook(pages):
    assert set(pages) == notebooks()


def test_every_page_is_in_the_navigation(pages):
    linked = {os.path.normpath(urlsplit(h).path) for h in pages['index.html'].links if not urlsplit(h).scheme}
    assert set(pages) <= linked | {'index.html'}


def test_links_and_pictures_resolve(site, pages):
    broken = []
    for name, page in pages.items():
        for href in [*page.links, *page.sources, *(i['src'] for i in page.images)]:
            url = urlsplit(href)
            if url.scheme or url.netloc: continue
            target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(url.path))) if url.path else name
            if (site / target).is_dir(): target = os.path.normpath(f'{target}/index.html')
            if target.startswith('..') or not (site / target).is_file(): broken.append(f'{name}: {href}')
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids: broken.append(f'{name}: {href} (no such id)')
    assert not broken


def test_no_link_is_left_as_markdown(site, pages):
    "A name in backticks becomes a link by itself: within a link, or in the comment of a parameter, its Markdown would be left to read."
    bare, left = lambda html: re.sub(r'<[^>]+>', '', html), {}
    for name in set(pages) - {'foundations/cli.html'}:  # whose examples are such links
        html = (site / name).read_text(encoding='utf-8')
        prose = bare(re.sub(r'<(pre|script).*?</\1>', '', html, flags=re.S))
        left[name] = re.findall(r'\S*\]\([\w./]*\.ipynb\S*', prose) + re.findall(r'\S*`\]\([\w./]*\.html\S*', bare(html))
    assert {name: links[:3] for name, links in left.items() if links} == {}


def test_own_pages_are_linked_relatively(pages):
    assert [h for p in pages.values() for h in p.links if h.startswith('https://cxr-acgan.github.io')] == []


def test_pictures_have_alt_text_and_content(pages):
    for name, page in pages.items():
        for image in page.images:
            assert (image.get('alt') or '').strip(), f'{name}: a picture without alt text: {image["src"][:60]}'
            if image['src'].startswith('data:'): assert len(base64.b64decode(image['src'].split(',', 1)[1])) > 100


def test_pages_are_small(site, pages):
    for name in pages: assert (site / name).stat().st_size < 1_500_000, name


def test_page_weight(site, pages):
    "What a page loads before anybody searches: itself and, of the site, its styles with their fonts, scripts and pictures; of style sheets that only one scheme uses, both."
    def fonts(sheet):
        named = {(sheet.parent / path).resolve() for path in re.findall(r'url\(["\']?([^)"\'?#:]+\.woff2?)\b', sheet.read_text(encoding='utf-8'))}
        return {f for f in named if f.is_file() and (f.suffix == '.woff2' or f.with_suffix('.woff2') not in named)}  # browsers take the first format they know
    for name, page in pages.items():
        local = {os.path.normpath(os.path.join(os.path.dirname(name), urlsplit(s).path)) for s in [*page.sources, *(i['src'] for i in page.images)] if not urlsplit(s).scheme}
        files = {f.resolve() for f in (site / path for path in local) if f.is_file()}
        files |= {font for f in files if f.suffix == '.css' for font in fonts(f)}
        weight = (site / name).stat().st_size + sum(f.stat().st_size for f in files)
        assert len(files) > 4 and weight < 1_500_000, f'{name} weighs {weight:,} bytes'


def test_navigation_by_document_and_by_method():
    import yaml
    from cxr_acgan.cli import NOTEBOOKS
    config = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']
    groups = {'Documents': 'papers', 'Methods': '.', 'Foundations': 'foundations'}
    menus = {m['text']: [e['href'] for e in m['menu']] for m in config['navbar']['left'] if 'menu' in m}
    sections = {m['section']: [e['href'] for e in m['contents']] for m in config['sidebar']['contents'] if 'section' in m}
    for (menu, folder), section in zip(groups.items(), ('By document', 'By method', 'Foundations')):
        there = {p.relative_to(ROOT / 'nbs').as_posix() for p in (ROOT / 'nbs' / folder).glob('*.ipynb')}
        if folder == '.': there = {f'{n}.ipynb' for n in NOTEBOOKS}
        assert set(menus[menu]) == there and menus[menu] == sections[section], menu
    assert menus['More'] == sections['More'] == ['quiz.ipynb', 'cards.ipynb', 'references.ipynb']


def test_badges_open_the_notebook(pages):
    from cxr_acgan.cli import NOTEBOOKS, page_name
    settings = dict(re.findall(r'^(\w+) *= *(.*)$', (ROOT / 'settings.ini').read_text(encoding='utf-8'), flags=re.M))
    place = f'{settings["user"]}/{settings["repo"]}/blob/{settings["branch"]}/nbs'
    more = [p.relative_to(ROOT / 'nbs').with_suffix('').as_posix() for folder in ('papers', 'foundations') for p in (ROOT / 'nbs' / folder).glob('*.ipynb')]
    assert len(more) == 15
    for name in (*NOTEBOOKS, *more, 'index', 'quiz', 'cards', 'references'):
        links = pages[str(page_name(f'{name}.ipynb').with_suffix('.html'))].links
        assert f'https://colab.research.google.com/github/{place}/{name}.ipynb' in links, name
        assert f'https://kaggle.com/kernels/welcome?src=https://github.com/{place}/{name}.ipynb' in links, name


def finish_pages():
    "The site's last step as a module."
    loader = importlib.machinery.SourceFileLoader('finish_pages', str(ROOT / 'nbs' / 'finish_pages.py.py'))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('finish_pages', loader))
    loader.exec_module(module)
    return module


def test_formulas_are_drawn_without_a_network(site, pages):
    convert = pytest.importorskip('latex2mathml.converter', reason='latex2mathml is not installed').convert
    drawn = 0
    for name in pages:
        text = (site / name).read_text(encoding='utf-8')
        drawn += len(re.findall(r'<math[ >]', text))
        spans = re.findall(r'<span class="math \w+">(.{6})', text, flags=re.S)
        assert set(spans) <= {'<math '} and not re.search(r'katex|mathjax', text, flags=re.I), name
    assert drawn > 250
    inline = finish_pages().draw_formulas(r'<span class="math inline">\(a &lt; \frac12\)</span><script src="x/katex.min.js"></script>', convert)
    assert '<mo>&#x0003C;</mo>' in inline and '<mfrac>' in inline and 'display="inline"' in inline and 'script' not in inline


def test_citations_lead_to_references(pages):
    text = '<p>Odena et al. (2017), <a href="x">Odena et al. 2017</a>, <code>Odena et al. 2017</code>, Odena et al. 2016</p>'
    linked = finish_pages().link_citations(text, {'odena2017': r'\bOdena et al\.,? (?:\(2017\)|2017)'}, 'r.html')
    assert linked == text.replace('Odena et al. (2017)', '<a href="r.html#odena2017">Odena et al. (2017)</a>', 1)
    keys = re.findall(r'^@\w+\{([\w-]+),', (ROOT / 'nbs' / 'references.bib').read_text(encoding='utf-8'), flags=re.M)
    assert len(keys) == len(set(keys)) and set(keys) <= pages['references.html'].ids
    assert {'kumar', 'srm', 'singh', 'noori', 'carbone'} <= set(keys)
    assert 'references.html#odena2017' in pages['acgan.html'].links and '../references.html#wilson1927' in pages['foundations/metrics.html'].links
    named = finish_pages().name_links('<a href="x" aria-label="claim 3">vae</a> <a href="x" aria-label="The VAE">vae</a>')
    assert named == '<a href="x" aria-label="vae: claim 3">vae</a> <a href="x" aria-label="The VAE">vae</a>'
    cited = {h.partition('#')[2] for p in pages.values() for h in p.links if 'references.html#' in h}
    assert len(cited & set(keys)) > 50


def frame(index, head=''):
    rows = ''.join(f'<tr><th>{i}</th><td>{x}</td></tr>' for i, x in index)
    return f'<table border="1" class="dataframe"><thead><tr style=""><th>{head}</th><th>x</th></tr></thead><tbody>{rows}</tbody></table>'


def test_tables_lose_a_column_that_counts_rows(site, pages):
    drop = finish_pages().drop_counts
    assert drop(frame([(0, 'a'), (1, 'b')])) == '<table border="1" class="dataframe"><thead><tr style=""><th>x</th></tr></thead><tbody><tr><td>a</td></tr><tr><td>b</td></tr></tbody></table>'
    for kept in (frame([(0, 'a'), (2, 'b')]), frame([('NORMAL', 1)]), frame([(0, 'a')], head='epoch'), frame([(0, 'a')]).replace('<th>x', '<th colspan="2">x', 1).replace('<th></th>', '<th rowspan="2"></th>')):
        assert drop(kept) == kept
    text = drop('<p>' + frame([(0, 'a')]) + frame([('NORMAL', 1)]) + '</p>')
    assert text.count('<th>0</th>') == 0 and text.count('<th>NORMAL</th>') == 1
    assert drop((site / 'papers/singh.html').read_text(encoding='utf-8')) == (site / 'papers/singh.html').read_text(encoding='utf-8')


def test_every_reference_is_cited(site):
    assert 'no page yet' not in (site / 'references.html').read_text(encoding='utf-8')


def test_citation_file():
    import yaml
    cff = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    settings = dict(re.findall(r'^(\w+) *= *(.*)$', (ROOT / 'settings.ini').read_text(encoding='utf-8'), flags=re.M))
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cff) and cff['cff-version'] == '1.2.0' and cff['type'] == 'software'
    assert cff['version'] == settings['version'] and cff['license'] == 'Apache-2.0' and cff['repository-code'] == settings['git_url']
    bib = (ROOT / 'nbs' / 'references.bib').read_text(encoding='utf-8').replace('{', '').replace('}', '')
    assert sum(r['type'] != 'data' for r in cff['references']) == 5
    for r in cff['references']: assert r['title'] in bib and all(a['family-names'] in bib for a in r['authors'])


def test_home_shows_what_it_promises(site):
    text = (site / 'index.html').read_text(encoding='utf-8')
    first = text[text.index('<main'):text.index('id="documents"')]
    assert first.count('<img') == 2 and 'real' in first and 'cxr-acgan reproduce' in first and 'href="quiz.html"' in first and 'href="cards.html"' in first
    assert 'medical device' in first and 'CC BY 4.0' in first


def test_a_card_for_each_set_and_model(pages):
    from cxr_acgan.data import DATASETS
    ids = pages['cards.html'].ids
    assert set(DATASETS) <= ids and {'singh', 'srm', 'noori', 'vae', 'vgg16_singh', 'grid_vit_real_all', 'claim-items', 'tripodai-items'} <= ids


def test_exported_names_are_documented(pages):
    assert {'load_cxr', 'cxrdataset'} <= pages['data.html'].ids
    assert any(h.startswith('data.html#load_cxr') for p in ('index.html', 'acgan.html') for h in pages[p].links)


@pytest.fixture(scope='session')
def address(site):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


@pytest.fixture(scope='session', params=[(1280, 'light'), (390, 'dark')], ids=['desktop', 'phone'])
def context(request, browser, address):
    "A window in which only the site itself answers: what it asks of others (fonts, badges, KaTeX) gets an empty answer."
    width, scheme = request.param
    c = browser.new_context(viewport={'width': width, 'height': 844}, color_scheme=scheme)
    c.route('**/*', lambda route: route.continue_() if route.request.url.startswith((address, 'data:')) else route.fulfill(
        status=200, headers={'Access-Control-Allow-Origin': '*'}, body='<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>' if route.request.resource_type == 'image' else '',
        content_type={'image': 'image/svg+xml', 'stylesheet': 'text/css', 'script': 'text/javascript'}.get(route.request.resource_type, 'text/plain')))
    yield c
    c.close()


@pytest.mark.parametrize('name', sorted(notebooks()))
def test_in_a_browser(context, address, name):
    page, problems = context.new_page(), []
    page.on('console', lambda m: problems.append(m.text) if m.type == 'error' else None)
    page.on('pageerror', lambda e: problems.append(str(e)))
    page.on('requestfailed', lambda r: problems.append(f'{r.url} failed'))
    page.goto(address + name, wait_until='load')
    assert page.title() and page.locator('h1').count() >= 1
    wide, window = page.evaluate('[document.documentElement.scrollWidth, window.innerWidth]')
    assert wide <= window, f'{name} scrolls sideways: {wide} > {window}'
    assert page.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 80))") == []
    page.close()
    assert not problems


@pytest.fixture
def open_page(browser, address):
    "A function that opens a page of the site in a window of its own; only the site answers."
    windows = []
    def start(name, width=1280, scheme='light', **options):
        window = browser.new_context(viewport={'width': width, 'height': 844}, color_scheme=scheme, **options)
        window.route('**/*', lambda r: r.continue_() if r.request.url.startswith((address, 'data:')) else r.abort())
        windows.append(window)
        page = window.new_page()
        page.goto(address + name, wait_until='load')
        return page
    yield start
    for window in windows: window.close()


def test_search_finds_table_1(open_page):
    page = open_page('index.html')
    page.keyboard.press('/')
    page.keyboard.type('Table 1')
    page.wait_for_selector('.search-result')
    found = page.locator('.search-result').evaluate_all('items => items.map(i => [i.href, i.innerText])')
    assert any('Table 1' in text and 'papers/singh.html#table-1' in href for href, text in found), found
    page.locator('.search-result', has_text='Table 1').first.click()
    page.wait_for_url('**/papers/*.html#table-1*')
    assert page.evaluate('document.querySelector(location.hash).innerText').startswith('Table 1')


def test_code_can_be_copied(open_page):
    page = open_page('acgan.html', permissions=['clipboard-read', 'clipboard-write'])
    without = page.locator('main pre:has(> code)').evaluate_all(
        'all => all.filter(p => !p.closest(".cell-output") && !(p.closest(".code-copy-outer-scaffold") || p).querySelector(".code-copy-button")).map(p => p.innerText)')
    assert without == [] and page.locator('main .code-copy-button').count() > 10
    first = page.locator('main .code-copy-button').first
    first.click()
    copied = page.evaluate('navigator.clipboard.readText()')
    assert len(copied) > 20 and copied == first.evaluate('b => b.parentElement.querySelector("pre code").innerText')


def test_sidebar_folds_by_keys(open_page):
    page = open_page('index.html')
    toggle = page.locator('a.sidebar-item-toggle').first
    section = page.locator(toggle.get_attribute('data-bs-target'))
    toggle.focus()
    page.keyboard.press('Enter')
    section.wait_for(state='hidden')
    page.wait_for_timeout(500) # Bootstrap takes no second order while it folds
    page.keyboard.press(' ')
    section.wait_for(state='visible')


@pytest.mark.parametrize('width', [1280, 390])
def test_figures_enlarge(open_page, width):
    page = open_page('papers/singh.html', width)
    images, buttons = page.locator('main .cell-output-display img'), page.locator('button.cxr-zoom')
    assert buttons.count() == images.count() > 5
    alt, dialog = images.nth(2).get_attribute('alt'), page.locator('#cxr-zoom')
    small = images.nth(2).bounding_box()['width']
    buttons.nth(2).click()
    large = dialog.locator('img')
    assert dialog.is_visible() and large.get_attribute('alt') == alt and large.bounding_box()['width'] > 1.3 * small
    page.keyboard.press('Escape')
    assert not dialog.is_visible()
    buttons.nth(2).focus()
    page.keyboard.press('Enter')
    assert dialog.is_visible()
    dialog.locator('button').click()
    assert not dialog.is_visible()


def test_the_quiz_is_on_its_page(open_page):
    page = open_page('quiz.html', 390, 'dark')
    assert page.locator('[data-part="count"]').inner_text() == 'Picture 1 of 24'
    page.click('[data-answer="real"]')
    page.keyboard.press('n')
    assert page.locator('[data-part="count"]').inner_text() == 'Picture 2 of 24' and ' of 1 right' in page.locator('[data-part="score"]').inner_text()
    page.click('[data-answer="real"]')
    page.keyboard.press('s') # here an answer, elsewhere on the page the renderer's key for the search
    assert page.evaluate('document.activeElement.dataset.part') == 'next'


def axe_core():
    "The text of axe-core's script, which axe-playwright-python brings along."
    package = importlib.util.find_spec('axe_playwright_python')
    if package is None: pytest.skip('axe-core is not there: pip install axe-playwright-python')
    return Path(package.origin).with_name('axe.min.js').read_text(encoding='utf-8')


LOOKS = [(1280, 'light'), (768, 'dark'), (390, 'light'), (1280, 'dark'), (768, 'light'), (390, 'dark')]


@pytest.mark.parametrize('look', LOOKS, ids=lambda look: f'{look[0]}-{look[1]}')
def test_accessible(open_page, look):
    "No serious or critical finding of axe-core: the home page in every look, each other page in one of them, or with $CXR_EVERY_LOOK in all."
    script = axe_core()
    names = [n for i, n in enumerate(sorted(notebooks())) if n == 'index.html' or os.environ.get('CXR_EVERY_LOOK') or i % len(LOOKS) == LOOKS.index(look)]
    found = []
    for name in names:
        page = open_page(name, *look)
        page.evaluate(script)
        for v in page.evaluate("axe.run({resultTypes: ['violations']}).then(r => r.violations)"):
            if v['impact'] in ('serious', 'critical'): found.append(f'{name}: {v["id"]}: {v["nodes"][0]["html"][:120]}')
        page.close()
    assert found == []
