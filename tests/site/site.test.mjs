// The built book in a browser. Run by test_site.py, or by hand:
//   BOOK_HTML=build/site/_build/html CHROMIUM=/usr/bin/chromium node --test tests/site/site.test.mjs
import assert from 'node:assert/strict';
import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';

const SITE = path.resolve(process.env.BOOK_HTML ?? 'build/site/_build/html');
const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');
const TYPES = {
  '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.png': 'image/png',
  '.woff': 'font/woff', '.woff2': 'font/woff2', '.json': 'application/json',
};
// sphinx-thebe, which Jupyter Book always loads, puts its script on each page twice; it does nothing here.
const HARMLESS = [/THEBE_JS_URL/, /reading 'classList'/];
const PAGES = fs.readdirSync(SITE, { recursive: true })
  .filter((file) => /^(book|notebooks)\/.*\.html$/.test(file)).sort();
const source = (page) => fs.readFileSync(path.join(SITE, page), 'utf8');
const CHAPTERS = PAGES.filter((page) => page.startsWith('notebooks/'));

let server, base, browser;

before(async () => {
  server = http.createServer((request, response) => {
    const wanted = decodeURIComponent(new URL(request.url, 'http://x').pathname).replace(/^\/book-root/, '');
    const file = path.join(SITE, wanted); // served below a folder, as project pages are
    if (!file.startsWith(SITE) || !fs.existsSync(file) || fs.statSync(file).isDirectory()) {
      response.writeHead(404);
      return response.end();
    }
    response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' });
    return fs.createReadStream(file).pipe(response);
  });
  await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
  base = `http://127.0.0.1:${server.address().port}/book-root/`;
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
  });
});

after(async () => {
  await browser?.close();
  server?.close();
});

/** Open a page; note every request that leaves it, every answer that fails, every error of a script. */
async function open(page, { scheme = 'light' } = {}) {
  const context = await browser.newContext({ viewport: { width: 1400, height: 900 }, colorScheme: scheme });
  const tab = await context.newPage();
  const trouble = { outside: [], failed: [], errors: [] };
  await context.route('**/*', (route) => {
    if (new URL(route.request().url()).hostname === '127.0.0.1') return route.continue();
    trouble.outside.push(route.request().url());
    return route.abort();
  });
  tab.on('response', (response) => response.status() >= 400 && trouble.failed.push(response.url()));
  tab.on('pageerror', (error) => HARMLESS.some((known) => known.test(error)) || trouble.errors.push(String(error)));
  await tab.goto(base + page, { waitUntil: 'load' });
  await tab.evaluate(() => window.MathJax?.startup?.promise);
  return { context, tab, trouble };
}

/** What axe says is serious on the article, WCAG A and AA. */
async function violations(tab) {
  return tab.evaluate(async () => {
    // Sphinx gives its list of references role=list with children that are no list items.
    const scope = { include: 'article', exclude: ['.citation-list'] };
    const found = await window.axe.run(scope, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'] });
    return found.violations.map((v) => `${v.id} ×${v.nodes.length}: ${v.nodes[0].html.slice(0, 160)}`);
  });
}

test('the book has its pages', () => {
  for (const page of ['index', 'how_to_read', 'claims', 'status', 'glossary', 'audit', 'reproduce', 'bibliography']) {
    assert.ok(PAGES.includes(`book/${page}.html`), `${page} is missing`);
  }
  assert.ok(CHAPTERS.length >= 1, 'no chapter was built');
});

for (const page of PAGES) {
  test(`${page}: whole without a network, accessible in both themes, fits a phone`, async () => {
    const { context, tab, trouble } = await open(page);
    await tab.evaluate(() => document.querySelectorAll('img[loading=lazy]').forEach((image) => { image.loading = 'eager'; }));
    await tab.waitForLoadState('networkidle');
    const seen = await tab.evaluate(() => {
      const images = [...document.querySelectorAll('article img')];
      const shown = images.filter((image) => getComputedStyle(image).display !== 'none');
      return {
        formulas: document.querySelectorAll('article .math').length,
        typeset: document.querySelectorAll('article .math mjx-container').length,
        badFormulas: [...document.querySelectorAll('mjx-merror')].map((node) => node.title || node.textContent),
        broken: shown.filter((image) => !image.complete || !image.naturalWidth).map((image) => image.src),
        unnamed: images.filter((image) => !image.alt.trim() || /\.(png|svg)$/.test(image.alt)).map((image) => image.src),
        // a directive that was not understood is shown as it was written
        raw: [...document.querySelectorAll('article p, article pre')].filter((n) => !n.closest('.cell, .highlight-python'))
          .map((n) => n.textContent.trim()).filter((t) => /^(:{3,}|`{3,})\{/.test(t)),
        unresolved: [...document.querySelectorAll('article code')].map((n) => n.textContent).filter((t) => t.startsWith('?? ')),
      };
    });
    assert.deepEqual(trouble, { outside: [], failed: [], errors: [] });
    assert.ok(seen.typeset >= seen.formulas, `${seen.typeset} of ${seen.formulas} formulas are typeset`);
    for (const list of ['badFormulas', 'broken', 'unnamed', 'raw', 'unresolved']) assert.deepEqual(seen[list], [], list);

    await tab.addScriptTag({ path: AXE });
    for (const theme of ['light', 'dark']) {
      await tab.evaluate((name) => { document.documentElement.dataset.theme = name; }, theme);
      await tab.waitForTimeout(250); // colours fade
      assert.deepEqual(await violations(tab), [], `${theme} theme`);
    }

    await tab.setViewportSize({ width: 390, height: 844 }); // a phone
    const excess = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(excess <= 1, `${excess} pixels too wide for a phone`);
    await context.close();
  });
}

for (const page of CHAPTERS.filter((chapter) => source(chapter).includes('class="rejection-explorer"'))) {
  test(`${page}: the explorer answers to the keyboard, and its drawing stands for it without scripts`, async () => {
    const { context, tab } = await open(page);
    const explorer = tab.locator('figure .rejection-explorer').first();
    const coverage = () => explorer.locator('[data-part="coverage"]').textContent();
    await explorer.locator('[data-part="slider"]').focus();
    await tab.keyboard.press('Home');
    assert.equal(await coverage(), '100.0\u00a0%');
    await tab.keyboard.press('End');
    assert.equal(await coverage(), '0.0\u00a0%');
    assert.ok(await explorer.locator('[data-part="list"] li').count() >= 1);
    const drawings = 'figure:has(.rejection-explorer) > img';
    assert.equal(await tab.locator(`${drawings}:visible`).count(), 0);
    await context.close();
    const plain = await browser.newContext({ javaScriptEnabled: false });
    const still = await plain.newPage();
    await still.goto(base + page);
    assert.ok(await still.locator(`${drawings}:visible`).count() >= 1, 'no drawing without scripts');
    assert.ok(await still.locator('.rejection-explorer').first().isHidden());
    await plain.close();
  });
}

test('links inside the book lead to something that is there', () => {
  const missing = [];
  for (const page of PAGES) {
    for (const [, href] of source(page).matchAll(/<a [^>]*href="([^"]+)"/g)) {
      if (/^[a-z]+:/.test(href) || href === '#') continue;
      const [file, anchor] = href.replaceAll('&amp;', '&').split('#');
      const target = file ? path.join(path.dirname(page), decodeURIComponent(file.split('?')[0])) : page;
      if (!fs.existsSync(path.join(SITE, target))) missing.push(`${page}: ${href}`);
      else if (anchor && target.endsWith('.html') && !source(target).includes(`id="${decodeURIComponent(anchor)}"`)) {
        missing.push(`${page}: ${href}`);
      }
    }
  }
  assert.deepEqual(missing, []);
});

for (const scheme of ['light', 'dark']) {
  test(`the ${scheme} theme follows the reader's system, and the switch changes it`, async () => {
    const { context, tab } = await open('book/index.html', { scheme });
    const lightness = () => tab.evaluate(() => {
      const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
      return (r + g + b) / 765;
    });
    const first = await lightness();
    assert.ok(scheme === 'dark' ? first < 0.3 : first > 0.7, `background has lightness ${first}`);
    const picture = await tab.screenshot();
    assert.ok(picture.length > 10_000, 'the page is blank');
    for (let click = 0; click < 3 && Math.abs((await lightness()) - first) < 0.4; click += 1) {
      await tab.locator('.theme-switch-button:visible').first().click();
      await tab.waitForTimeout(250);
    }
    assert.ok(Math.abs((await lightness()) - first) > 0.4, 'the switch changes nothing');
    await context.close();
  });
}

test('search, from the keyboard: open, type, find', async () => {
  const { context, tab } = await open('book/index.html');
  await tab.keyboard.press('Control+k');
  await tab.keyboard.type('attention');
  await Promise.all([tab.waitForURL(/search\.html/), tab.keyboard.press('Enter')]);
  // results come one after the other; the wait fails when this one never does
  await tab.locator('#search-results li a', { hasText: 'Glossary' }).first().waitFor({ timeout: 15000 });
  await context.close();
});

test('solutions are folded, and open from the keyboard', async () => {
  const page = CHAPTERS.find((chapter) => source(chapter).includes('class="solution'));
  assert.ok(page, 'no chapter has an exercise with a folded solution');
  const { context, tab } = await open(page);
  const solution = tab.locator('.solution.dropdown').first();
  const body = solution.locator('section, .section').first();
  assert.ok(!(await body.isVisible()), 'the solution stands open');
  const button = solution.locator('button.toggle-button');
  const focused = () => button.evaluate((node) => node === document.activeElement);
  for (let presses = 0; presses < 400 && !(await focused()); presses += 1) await tab.keyboard.press('Tab');
  assert.ok(await focused(), 'Tab does not reach the button');
  await tab.keyboard.press('Enter');
  await body.waitFor({ state: 'visible', timeout: 3000 });
  await context.close();
});

test('a chapter opens in Binder and Colab, and downloads as a notebook', async () => {
  const page = CHAPTERS[0];
  const notebook = page.replace('.html', '.ipynb');
  const html = source(page);
  const links = [...html.matchAll(/href="([^"]+)"/g)].map(([, href]) => href.replaceAll('&amp;', '&'));
  const binder = links.find((href) => href.startsWith('https://mybinder.org/'));
  const colab = links.find((href) => href.startsWith('https://colab.research.google.com/'));
  assert.ok(decodeURIComponent(binder ?? '').includes(notebook), `Binder: ${binder}`);
  assert.ok((colab ?? '').endsWith(`/blob/main/${notebook}`), `Colab: ${colab}`);
  const download = links.find((href) => href.endsWith('.ipynb') && href.includes('_sources'));
  assert.ok(download, 'no link to the notebook');
  JSON.parse(fs.readFileSync(path.join(SITE, path.dirname(page), download), 'utf8'));
  const { context, tab } = await open(page);
  await tab.locator('.dropdown-launch-buttons > button').click();
  assert.ok(await tab.locator('.dropdown-launch-buttons a', { hasText: 'Colab' }).isVisible());
  await context.close();
});
