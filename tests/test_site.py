"The site: one notebook run and the site built by the command, then read page by page and opened in a browser."
import base64
import functools
import http.server
import os
import shutil
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
    command = [sys.executable, '-c', 'import sys; from cxr_acgan.cli import main; sys.exit(main())', 'reproduce', 'vae', '--out', str(out)]
    env = {k: v for k, v in os.environ.items() if k != 'PYTEST_CURRENT_TEST'} # in which a kernel does not capture what C++ writes
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture(scope='session')
def site(reproduced):
    return reproduced[0] / 'site'


def test_reproduce(reproduced):
    out, errors = reproduced
    assert (out / 'notebooks' / '03_vae.ipynb').is_file() and (out / 'site' / 'index.html').is_file()
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


def test_own_pages_are_linked_relatively(pages):
    assert [h for p in pages.values() for h in p.links if h.startswith('https://cxr-acgan.github.io')] == []


def test_pictures_have_alt_text_and_content(pages):
    for name, page in pages.items():
        for image in page.images:
            assert (image.get('alt') or '').strip(), f'{name}: a picture without alt text: {image["src"][:60]}'
            if image['src'].startswith('data:'): assert len(base64.b64decode(image['src'].split(',', 1)[1])) > 100


def test_pages_are_small(site, pages):
    for name in pages: assert (site / name).stat().st_size < 1_500_000, name


def test_exported_names_are_documented(pages):
    assert {'load_cxr', 'cxrdataset'} <= pages['data.html'].ids
    assert any(h.startswith('data.html#load_cxr') for p in ('index.html', 'acgan.html') for h in pages[p].links)


@pytest.fixture(scope='session')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
    with api.sync_playwright() as p:
        if path is None and Path(p.chromium.executable_path).exists(): path = p.chromium.executable_path
        if path is None: pytest.skip('no Chromium: install chromium, or google-chrome, for the browser tests')
        chromium = p.chromium.launch(executable_path=path, args=['--no-sandbox'] if os.geteuid() == 0 else [])
        yield chromium
        chromium.close()


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
