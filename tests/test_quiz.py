"The quiz, real or synthetic?: its pictures against the records, and the page played in a browser."
import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cxr_acgan.metrics import wilson_interval
from cxr_acgan.results import load_runs, record_images

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'results'


@pytest.fixture(scope='module')
def form():
    "The quiz as the notebook's saved output holds it: HTML."
    cells = json.loads((ROOT / 'nbs' / 'quiz.ipynb').read_text(encoding='utf-8'))['cells']
    [found] = [''.join(o['data']['text/html']) for c in cells for o in c.get('outputs', ()) if 'id="cxr-quiz"' in ''.join(o.get('data', {}).get('text/html', ''))]
    return found


@pytest.fixture(scope='module')
def key(form):
    "[{'real': bool, 'what': text}], undone as quiz.js does it."
    text = base64.b64decode(re.search(r'data-key="([^"]+)"', form)[1])
    return json.loads(bytes(b ^ (37 * i + 91 & 255) for i, b in enumerate(text)))


@pytest.fixture(scope='module')
def tiles(form):
    "uint8 (24, 64, 64), the pictures in the order in which they are asked."
    cv2 = pytest.importorskip('cv2')
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(re.search(r'image/png;base64,([^)]+)\)', form)[1]), 'uint8'), cv2.IMREAD_UNCHANGED)
    assert sheet.shape == (4 * 64, 6 * 64) and sheet.dtype == np.uint8
    return sheet.reshape(4, 64, 6, 64).swapaxes(1, 2).reshape(24, 64, 64)


def test_output_is_in_step(form):
    for name in ('quiz.js', 'quiz.css'): assert (ROOT / 'nbs' / name).read_text(encoding='utf-8') in form, f'{name} has changed: run the notebook again'


def test_twelve_of_each_kind(key):
    real = [k for k in key if k['real']]
    assert len(key) == 24 and len(real) == 12
    assert sum('NORMAL' in k['what'] for k in real) == sum('NORMAL' in k['what'] for k in key if not k['real']) == 6
    runs = ''.join('r' if k['real'] else 's' for k in key)
    assert not re.search('r{6}|s{6}', runs) and runs not in ('rs' * 12, 'sr' * 12) # shuffled


def test_the_key_is_right(tiles, key):
    [real] = load_runs('real_images', root=RESULTS)
    found = np.concatenate([record_images(real, 'test.png'), *(record_images(r, 'generated.png') for r in load_runs('singh', root=RESULTS))])
    normed = lambda x: (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    likeness = np.einsum('iab,jab->ij', normed(tiles.astype(float)), normed(found.astype(float))) / 64**2
    closest = likeness.argmax(1)
    assert likeness.max(1).min() > 0.99 and len(set(closest)) == 24
    assert [bool(i < 12) for i in closest] == [k['real'] for k in key]
    for i, k in zip(closest, key):
        if k['real']: assert real.settings['classes'][i] in k['what'] and real.settings['files']['test'][i].split('/')[1] in k['what']
        else: assert f'seed {(i - 12) // 64}' in k['what'] and ('NORMAL' in k['what']) == ((i - 12) % 64 < 32)


def test_both_kinds_have_the_same_levels(tiles, key):
    levels = {round(v * 255 / 31) for v in range(32)} | {int(v * 255 / 31) for v in range(32)}
    assert set(np.unique(tiles)) <= levels
    assert (tiles.min((1, 2)) == 0).all() and (tiles.max((1, 2)) == 255).all()
    assert len({len(np.unique(t)) for t in tiles}) == 1 # all 32 in each


def test_nothing_gives_the_answer_away(form, key):
    page = re.sub(r'<script>.*?</script>|data-key="[^"]*"|url\([^)]*\)', '', form, flags=re.S)
    assert 'Kermany' not in page and 'seed' not in page and '.jpeg' not in form
    assert len(re.findall(r'data:image', form)) == 1 # one file, one coding
    assert 'http' not in form and 'fetch' not in form and 'XMLHttp' not in form
    assert 'Kermany' not in form # the key is not in plain sight


@pytest.fixture
def quiz(browser, form):
    "A function that opens the quiz; afterwards nothing was asked of the network and no script failed."
    pages, asked, problems = [], [], []
    def start(**options):
        page = browser.new_context(**options).new_page()
        page.route('**/*', lambda route: (asked.append(route.request.url), route.abort()))
        page.on('pageerror', lambda e: problems.append(str(e)))
        page.set_content(f'<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><main>{form}</main></html>')
        pages.append(page)
        return page
    yield start
    for page in pages: page.context.close()
    assert asked == [] and problems == []


def part(page, name): return page.locator(f'[data-part="{name}"]')


def score_of(page):
    "(low, high) as the page computed them, not rounded."
    return tuple(float(part(page, 'score').get_attribute(f'data-{end}')) for end in ('low', 'high'))


def other(answer): return 'synthetic' if answer == 'real' else 'real'


def test_right_and_wrong_with_the_mouse(quiz, key):
    page, right = quiz(), 0
    assert part(page, 'score').inner_text() == 'No picture judged yet.' and not part(page, 'next').is_visible()
    for i, k in enumerate(key):
        assert part(page, 'count').inner_text() == f'Picture {i + 1} of 24'
        label = part(page, 'picture').get_attribute('aria-label')
        assert label == f'Picture {i + 1} of 24: a chest X-ray, real or synthetic'
        truth = 'real' if k['real'] else 'synthetic'
        said = other(truth) if i % 3 == 2 else truth # every third one wrong
        right += said == truth
        page.click(f'[data-answer="{said}"]')
        feedback = part(page, 'feedback')
        assert feedback.inner_text() == f'{"Right" if said == truth else "Wrong"}: {truth}. {k["what"]}'
        assert feedback.get_attribute('aria-live') == 'polite' and feedback.get_attribute('data-right') == str(said == truth).lower()
        low, high = wilson_interval(right, i + 1)
        assert score_of(page) == pytest.approx((low, high), abs=1e-12)
        assert part(page, 'score').inner_text().startswith(f'{right} of {i + 1} right: ')
        page.click('[data-part="next"]')
    shown = part(page, 'verdict').inner_text()
    low, high = wilson_interval(16, 24)
    assert right == 16 and shown.startswith(f'16 of 24 right: 67 %, 95 % interval {100 * low:.0f} % to {100 * high:.0f} %.')
    assert 'contains 50 %' in shown and page.locator('[data-part="gallery"] li').count() == 24
    assert page.evaluate("document.activeElement.dataset.part") == 'verdict'
    page.click('[data-part="again"]')
    assert part(page, 'count').inner_text() == 'Picture 1 of 24' and part(page, 'score').inner_text() == 'No picture judged yet.'


@pytest.mark.parametrize('wrong, verdict, interval', [(0, 'better than a coin', wilson_interval(24, 24)), (24, 'wrong way round', wilson_interval(0, 24))])
def test_keys_alone(quiz, key, wrong, verdict, interval):
    page = quiz()
    page.keyboard.press('Tab') # into the quiz
    for i, k in enumerate(key):
        truth = 'real' if k['real'] else 'synthetic'
        page.keyboard.press((other(truth) if i < wrong else truth)[0])
        page.keyboard.press('s') # a second answer does not count
        assert part(page, 'score').inner_text().startswith(f'{max(i + 1 - wrong, 0)} of {i + 1} right')
        assert page.evaluate("document.activeElement.dataset.part") == 'next'
        page.keyboard.press('n' if i % 2 else 'Enter')
    assert verdict in part(page, 'verdict').inner_text() and score_of(page) == pytest.approx(interval, abs=1e-12)


def test_keys_outside_do_nothing(quiz):
    page = quiz()
    page.keyboard.press('r')
    assert part(page, 'score').inner_text() == 'No picture judged yet.'


def test_touch_on_a_phone(quiz, key):
    page = quiz(viewport={'width': 390, 'height': 844}, has_touch=True, is_mobile=True)
    for name in ('real', 'synthetic'):
        box = page.locator(f'[data-answer="{name}"]').bounding_box()
        assert box['height'] >= 44 and box['width'] >= 44
    page.locator('[data-answer="real"]').tap()
    assert part(page, 'feedback').inner_text().startswith('Right' if key[0]['real'] else 'Wrong')
    part(page, 'next').tap()
    assert part(page, 'count').inner_text() == 'Picture 2 of 24'
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')


def test_pictures_differ_and_are_drawn(quiz, tiles):
    "What is seen for the first three pictures is their place on the sheet."
    cv2 = pytest.importorskip('cv2')
    page = quiz(viewport={'width': 800, 'height': 900})
    for i in range(3):
        seen = cv2.imdecode(np.frombuffer(part(page, 'picture').screenshot(), 'uint8'), cv2.IMREAD_GRAYSCALE)
        small = cv2.resize(seen, (64, 64), interpolation=cv2.INTER_AREA).ravel().astype(float)
        likeness = [np.corrcoef(small, t.ravel())[0, 1] for t in tiles]
        assert np.argmax(likeness) == i and likeness[i] > 0.97
        page.click('[data-answer="real"]')
        page.click('[data-part="next"]')
