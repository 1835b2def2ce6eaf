/* The report's style sheet: light and dark by the reader's setting. The pictures' ink and grid
 * (KV_INK, KV_GRID in viz/gnuplot.h, as gnuplot writes them) follow it. */
#ifndef KV_VIZ_REPORT_STYLE_H
#define KV_VIZ_REPORT_STYLE_H

#define KV_REPORT_STYLE                                                                              \
  ":root{--ink:#1d2329;--soft:#5b6670;--line:#e1e5e9;--paper:#f6f7f9;--card:#fff;--accent:#0072b2;"  \
  "--good:#00755a;--bad:#b23c00;--caution:#8a5a00;--cautionpaper:#fff6e0}\n"                         \
  "@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5af;--line:#333b43;"             \
  "--paper:#14181c;--card:#1c2126;--accent:#56b4e9;--good:#3cc9a0;--bad:#ff8a4f;"                    \
  "--caution:#f0c060;--cautionpaper:#2c2616}}\n"                                                     \
  "*{box-sizing:border-box}\n"                                                                       \
  "body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"   \
  "'Segoe UI','Liberation Sans',Helvetica,Arial,sans-serif}\n"                                       \
  "main{max-width:1000px;margin:0 auto;padding:48px 24px 80px}\n"                                    \
  "h1{font-size:34px;line-height:1.2;margin:4px 0 14px;letter-spacing:-.02em}\n"                     \
  "h2{font-size:19px;margin:0 0 10px;letter-spacing:-.01em}\n"                                       \
  ".eyebrow{margin:0;color:var(--accent);font-size:13px;font-weight:600;letter-spacing:.04em}\n"     \
  ".headline{font-size:19px;line-height:1.5;margin:0 0 16px;max-width:52em}\n"                       \
  ".tags{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 24px}\n"                                     \
  ".tags span{border:1px solid var(--line);background:var(--card);border-radius:99px;"               \
  "padding:2px 12px;font-size:13px;color:var(--soft)}\n"                                             \
  ".tags .caution{color:var(--caution);border-color:currentColor}\n"                                 \
  ".runs{padding:0;list-style:none;margin:0 0 24px}\n"                                               \
  ".runs li{margin:0 0 12px}\n.runs small{display:block;color:var(--soft);font-size:14px}\n"         \
  ".runs i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px}\n"        \
  ".notes{background:var(--cautionpaper);color:var(--caution);border-radius:10px;"                   \
  "padding:12px 18px;margin:0 0 24px;font-size:15px}\n.notes p{margin:2px 0}\n"                      \
  ".cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px;"          \
  "margin:0 0 24px}\n"                                                                               \
  ".cards div,section.limit,figure,section:not([class]),details{background:var(--card);"             \
  "border:1px solid var(--line);border-radius:12px}\n"                                               \
  ".cards div{padding:14px 16px}\n"                                                                  \
  ".cards h3{margin:0;font-size:13px;font-weight:500;color:var(--soft)}\n"                           \
  ".cards p{margin:2px 0;font-size:25px;font-weight:650;letter-spacing:-.02em;white-space:nowrap}\n" \
  ".cards p small{font-size:13px;font-weight:400;color:var(--soft);letter-spacing:0}\n"              \
  ".cards span{font-size:13px;color:var(--soft)}\n"                                                  \
  "section.limit,section:not([class]),figure{padding:20px 24px;margin:0 0 24px}\n"                   \
  "section.limit{border-left:4px solid var(--accent)}\nsection.limit p{margin:0}\n"                  \
  "section.limit .eyebrow{margin-bottom:2px}\n"                                                      \
  "figure svg{display:block;width:100%;height:auto;margin:0 0 8px}\n"                                \
  "figcaption{color:var(--soft);font-size:14.5px;max-width:60em}\n"                                  \
  "figure svg [fill=\"rgb(60,70,80)\"]{fill:var(--ink)}\n"                                           \
  "figure svg [stroke=\"rgb( 60,  70,  80)\"]{stroke:var(--ink)}\n"                                  \
  "figure svg [stroke=\"rgb(217, 222, 227)\"]{stroke:var(--line)}\n"                                 \
  ".wide{overflow-x:auto}\n"                                                                         \
  "table{border-collapse:collapse;width:100%;font-size:15px;font-variant-numeric:tabular-nums}\n"    \
  "th{font-weight:500;text-align:left;padding:6px 10px}\n"                                           \
  "thead th{color:var(--soft);font-size:13px;text-align:right}\n"                                    \
  "td{text-align:right;padding:6px 10px;white-space:nowrap}\n"                                       \
  "tbody tr{border-top:1px solid var(--line)}\n"                                                     \
  ".group th{padding-top:18px;font-size:13px;font-weight:600;color:var(--accent)}\n"                 \
  ".good{color:var(--good)}.bad{color:var(--bad)}.same{color:var(--soft)}\n"                         \
  "details{padding:12px 24px;margin:0 0 12px}\nsummary{cursor:pointer;font-weight:600}\n"            \
  "dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;font-size:15px}\n"             \
  "dt{font-weight:600}dd{margin:0;color:var(--soft)}\n"                                              \
  "pre{overflow-x:auto;font:13px/1.5 ui-monospace,'DejaVu Sans Mono',monospace}\n"                   \
  "@media print{body{background:#fff}figure,section{break-inside:avoid}}\n"

#endif
