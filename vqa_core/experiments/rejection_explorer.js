// Fills the element that it stands in. Texts from the data are only ever set as text.
{
  const PAGE = 20; // declined questions that are listed at once
  const WIDTH = 300, HEIGHT = 160, LEFT = 44, TOP = 20; // of the drawing, as in its markup
  const root = document.currentScript.closest('.rejection-explorer');
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const number = (x) => x.toLocaleString('en');
  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const short = (share) => `${+(100 * share).toPrecision(3)}\u00a0%`;
  const [texts, pictures, rights] = data.questions;

  let model, sums; // the model that is shown; its sums over the group of questions that is shown
  let answered; // how many of its levels of confidence are answered, from the surest
  let listed = PAGE;
  let quiet; // timer of the announcement

  const asked = (i) => !part('group') || part('group').value === '0' || data.group[i] === part('group').value - 1;

  /** Questions, errors and wrong answers among the surest levels of confidence: entry g is of the first g levels. */
  function cumulate({ rank, errors, confidence }) {
    const levels = Array.from({ length: confidence.length + 1 }, () => ({ n: 0, error: 0, wrong: 0 }));
    rank.forEach((r, i) => {
      if (!asked(i)) return;
      levels[r + 1].n += 1;
      levels[r + 1].error += errors[i];
      levels[r + 1].wrong += errors[i] === 1;
    });
    levels.forEach((level, g) => g && Object.keys(level).forEach((key) => { level[key] += levels[g - 1][key]; }));
    return levels;
  }

  /** Risk when the k surest are answered, k = 1 … n; among equals, the mean over all orders. */
  function riskCurve(levels) {
    const risks = [];
    levels.slice(1).forEach((level, g) => {
      const before = levels[g];
      const slope = (level.error - before.error) / (level.n - before.n);
      for (let k = before.n + 1; k <= level.n; k += 1) risks.push((before.error + slope * (k - before.n)) / k);
    });
    return risks;
  }

  /** Wilson's interval for a mean of n numbers between 0 and 1. */
  function wilson(mean, n) {
    const z2 = 1.959963984540054 ** 2;
    const middle = (mean + z2 / (2 * n)) / (1 + z2 / n);
    const half = Math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n);
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  let top = 1; // risk at the upper end of the axis
  const across = (coverage) => WIDTH * coverage;
  const down = (risk) => HEIGHT * (1 - risk / top);
  const path = (risks) => risks.map((risk, i) => `${i ? 'L' : 'M'}${across((i + 1) / risks.length).toFixed(1)} ${down(risk).toFixed(1)}`).join('');

  /** What depends on the model and the group of questions, not on the threshold. */
  function drawCurves() {
    sums = cumulate(model);
    const curve = riskCurve(sums);
    const others = data.models.filter((m) => m !== model).map((m) => riskCurve(cumulate(m)));
    // the first few questions alone may all be wrong: they do not set the scale
    const high = Math.max(data.promise?.risk ?? 0, ...[curve, ...others].flatMap((r) => r.slice(Math.ceil(r.length / 20) - 1)));
    top = Math.max(0.1, Math.min(1, Math.ceil(10 * high) / 10));
    part('curve').setAttribute('d', path(curve));
    root.querySelectorAll('[data-part="other"]').forEach((line, i) => line.setAttribute('d', path(others[i])));
    [...part('heights').children].forEach((text, i) => { text.textContent = short(top * (1 - i / 2)); });
    const half = curve[Math.ceil(curve.length / 2) - 1];
    part('chart').setAttribute('aria-label', `Risk over coverage, ${model.name}: ${percent(half)} when half of the `
      + `questions are answered, ${percent(curve.at(-1))} when all are.`);
    if (!data.promise) return;
    const { groups, threshold } = model.guaranteed;
    const limit = `M0 ${down(data.promise.risk)}H${WIDTH}`;
    part('limits').setAttribute('d', groups ? `${limit}M${across(sums[groups].n / sums.at(-1).n)} 0V${HEIGHT}` : limit);
    part('guaranteed').disabled = !groups;
    part('promise').textContent = groups
      ? `Promise: at a threshold of ${threshold}, the risk on new questions is at most ${short(data.promise.risk)}, `
        + `except with probability ${short(data.promise.delta)}.`
      : `No threshold could promise a risk of at most ${short(data.promise.risk)}.`;
  }

  /** What depends on the threshold. */
  function drawThreshold() {
    const { n, error, wrong } = sums[answered];
    const all = sums.at(-1);
    const risk = error / n;
    const [low, high] = wilson(risk, n);
    const threshold = answered ? `${model.confidence[answered - 1]}` : 'above every confidence';
    const shown = {
      threshold: answered && answered === model.guaranteed?.groups ? `${model.guaranteed.threshold} (guaranteed)` : threshold,
      coverage: percent(n / all.n),
      risk: n ? percent(risk) : '–',
      interval: n ? `${(100 * low).toFixed(1)} to ${percent(high)}` : '–',
      answered: number(n),
      declined: number(all.n - n),
      wrong: number(wrong),
      lost: number(all.n - all.wrong - (n - wrong)),
    };
    Object.entries(shown).forEach(([name, text]) => { part(name).textContent = text; });
    part('slider').value = model.confidence.length - answered;
    part('slider').setAttribute('aria-valuetext', `${shown.threshold}, coverage ${shown.coverage}`);
    part('marker').setAttribute('visibility', n ? 'visible' : 'hidden');
    part('marker').setAttribute('cx', LEFT + across(n / all.n));
    part('marker').setAttribute('cy', TOP + Math.max(0, down(n ? risk : 0)));
    clearTimeout(quiet);
    quiet = setTimeout(() => { // a reader who holds a key down hears where it ends
      part('live').textContent = `${shown.answered} questions answered, ${shown.declined} declined; risk ${shown.risk}; `
        + `${shown.wrong} wrong answers given, ${shown.lost} right answers declined.`;
    }, 500);
    drawList();
  }

  function element(tag, text, name = '') {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = name;
    return made;
  }

  function drawList() {
    const declined = model.order.filter((i) => model.rank[i] >= answered && asked(i));
    part('heading').textContent = declined.length ? `Declined: ${number(declined.length)}, the surest first` : 'Nothing is declined';
    part('list').replaceChildren(...declined.slice(0, listed).map((i) => {
      const error = model.errors[i];
      const verdict = error === 1 ? '✗ would have been wrong' : error === 0 ? '✓ would have been right' : `◐ partly right: error ${short(error)}`;
      const about = element('span', `says “${model.given[i]}”, right is “${rights[i]}”: `);
      const more = [`confidence ${model.confidence[model.rank[i]]}`, data.groups[data.group[i]], `picture ${pictures[i]}`];
      about.append(element('b', verdict, error === 1 ? 'wrong' : 'right'), ` · ${more.filter(Boolean).join(' · ')}`);
      const item = element('li', texts[i]);
      item.append(about);
      return item;
    }));
    part('more').hidden = declined.length <= listed;
    part('region').hidden = !declined.length;
  }

  /** Take a model, at the coverage that the last one had, or at its own guaranteed threshold, or answering all. */
  function choose(next) {
    const had = sums?.[answered].n;
    model = next;
    model.order ??= model.rank.map((_, i) => i).sort((a, b) => model.rank[a] - model.rank[b]);
    drawCurves();
    const distance = (g) => Math.abs(sums[g].n - had);
    answered = had === undefined
      ? model.guaranteed?.groups || model.confidence.length
      : sums.reduce((best, _, g) => (distance(g) < distance(best) ? g : best), 0);
    part('slider').max = model.confidence.length;
    drawThreshold();
  }

  function answer(levels) {
    [answered, listed] = [levels, PAGE];
    part('region').scrollTop = 0;
    drawThreshold();
  }

  part('slider').addEventListener('input', (event) => answer(model.confidence.length - event.target.value));
  part('all').addEventListener('click', () => answer(model.confidence.length));
  part('guaranteed')?.addEventListener('click', () => answer(model.guaranteed.groups));
  part('model')?.addEventListener('change', (event) => choose(data.models[event.target.value]));
  part('group')?.addEventListener('change', () => { drawCurves(); answer(answered); });
  part('more').addEventListener('click', () => {
    listed += PAGE;
    drawList();
    if (part('more').hidden) part('region').focus(); // the focus does not vanish with the button
  });
  choose(data.models[0]);
  root.hidden = false;
}
