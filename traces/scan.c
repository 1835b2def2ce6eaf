#include "traces/scan.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/random.h"

enum { DEEPEST = 64 };

void kv_scan_begin(KvScan *scan, const KvTraceStream *stream, const char *text, gsize length,
                   GError **error) {
  *scan =
      (KvScan){.stream = stream, .text = text, .at = text, .end = text + length, .error = error};
}

gboolean kv_scan_fail(KvScan *scan, const char *field, const char *format, ...) {
  if (scan->failed)
    return FALSE;
  scan->failed = TRUE;
  guint64 line = kv_trace_stream_line_number(scan->stream);
  for (const char *c = scan->text; c < scan->at && c < scan->end; c++)
    line += *c == '\n';
  va_list args;
  va_start(args, format);
  g_autofree char *message = g_strdup_vprintf(format, args);
  va_end(args);
  kv_error_at(scan->error, kv_trace_stream_name(scan->stream), line, "%s%s%s", field ? field : "",
              field ? ": " : "", message);
  return FALSE;
}

/* What stands here, for an error; a static description of the kind of value. */
static const char *found(KvScan *scan) {
  if (scan->at >= scan->end)
    return "the end of the record";
  switch (*scan->at) {
  case '"':
    return "a string";
  case '{':
    return "an object";
  case '[':
    return "an array";
  case 't':
  case 'f':
    return "a boolean";
  case 'n':
    return "null";
  case 'N':
  case 'I':
    return "a number that is not finite";
  case '-':
    return scan->at[1] == 'I' ? "a number that is not finite" : "a negative number";
  default:
    return g_ascii_isdigit(*scan->at) ? "a number" : "something that is not JSON";
  }
}

static void blanks(KvScan *scan) {
  while (*scan->at == ' ' || *scan->at == '\t' || *scan->at == '\r' || *scan->at == '\n')
    scan->at++;
}

char kv_scan_peek(KvScan *scan) {
  if (scan->failed)
    return '\0';
  blanks(scan);
  return *scan->at;
}

gboolean kv_scan_open(KvScan *scan, char bracket, const char *field) {
  if (scan->failed)
    return FALSE;
  if (kv_scan_peek(scan) != bracket)
    return kv_scan_fail(scan, field, "%s found, expected %s", found(scan),
                        bracket == '{' ? "a JSON object" : "an array");
  scan->at++;
  return TRUE;
}

/* The comma before every member but the first, or the end. */
static gboolean separated(KvScan *scan, guint *count, char closing, const char *field) {
  if (scan->failed)
    return FALSE;
  char c = kv_scan_peek(scan);
  if (c == closing) {
    scan->at++;
    return FALSE;
  }
  if (*count > 0) {
    if (c != ',')
      return kv_scan_fail(scan, field, "%s found, expected ',' or '%c'", found(scan), closing);
    scan->at++;
    kv_scan_peek(scan);
  }
  ++*count;
  return TRUE;
}

gboolean kv_scan_member(KvScan *scan, guint *count, const char **key, gsize *length) {
  if (!separated(scan, count, '}', NULL))
    return FALSE;
  if (*scan->at != '"')
    return kv_scan_fail(scan, NULL, "%s found, expected a field's name in quotes", found(scan));
  *key = kv_scan_string(scan, NULL, length);
  if (kv_scan_peek(scan) != ':')
    return kv_scan_fail(scan, NULL, "%s found, expected ':' after a field's name", found(scan));
  scan->at++;
  return !scan->failed;
}

gboolean kv_scan_element(KvScan *scan, guint *count, const char *field) {
  return separated(scan, count, ']', field);
}

gboolean kv_scan_is(const char *key, gsize length, const char *name) {
  return strlen(name) == length && memcmp(key, name, length) == 0;
}

/* The length of the JSON number at `text`, 0 if there is none; whether it is written as a whole
 * one. */
static gsize number_length(const char *text, gboolean *whole) {
  const char *at = text + (*text == '-');
  *whole = TRUE;
  if (!g_ascii_isdigit(*at))
    return 0;
  if (*at == '0')
    at++;
  else
    while (g_ascii_isdigit(*at))
      at++;
  if (*at == '.') {
    *whole = FALSE;
    if (!g_ascii_isdigit(*++at))
      return 0;
    while (g_ascii_isdigit(*at))
      at++;
  }
  if (*at == 'e' || *at == 'E') {
    *whole = FALSE;
    at++;
    at += *at == '+' || *at == '-';
    if (!g_ascii_isdigit(*at))
      return 0;
    while (g_ascii_isdigit(*at))
      at++;
  }
  return (gsize)(at - text);
}

static gboolean ends_number(char c) {
  return c == ',' || c == '}' || c == ']' || c == ' ' || c == '\r' || c == '\n' || c == '\0';
}

/* The common numbers, without strtod: up to 15 digits and a point, so both parts of the division
 * are exact and its result is the nearest double. FALSE, with nothing taken, for any other. */
static gboolean take_short_decimal(KvScan *scan, double *value) {
  static const double powers[] = {1e0, 1e1, 1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                  1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
  const char *c = scan->at, *point = NULL;
  gint64 digits = 0;
  guint n = 0, fraction = 0;
  for (; n <= 15 && (g_ascii_isdigit(*c) || (*c == '.' && !point)); c++) {
    if (*c == '.') {
      point = c;
    } else {
      digits = digits * 10 + (*c - '0');
      n++;
      fraction += point != NULL;
    }
  }
  gboolean leading_zero = scan->at[0] == '0' && g_ascii_isdigit(scan->at[1]);
  if (n == 0 || n > 15 || !ends_number(*c) || leading_zero || point == scan->at ||
      (point && fraction == 0))
    return FALSE;
  scan->at = c;
  *value = (double)digits / powers[fraction];
  return TRUE;
}

double kv_scan_number(KvScan *scan, const char *field, double min, double max) {
  gboolean whole;
  char c = kv_scan_peek(scan);
  const char *begin = scan->at;
  double quick;
  if (scan->failed)
    return 0;
  if (take_short_decimal(scan, &quick)) {
    if (quick >= min && quick <= max)
      return quick;
    scan->at = begin;
  }
  gsize length = number_length(scan->at, &whole);
  if (length == 0) {
    kv_scan_fail(scan, field, "%s found, expected a number",
                 c == '-' ? "a bad number" : found(scan));
    return 0;
  }
  double value = g_ascii_strtod(scan->at, NULL);
  if (!isfinite(value) || value < min || value > max) {
    kv_scan_fail(scan, field, "%.*s found, expected a number from %g to %g", (int)MIN(length, 40),
                 scan->at, min, max);
    return 0;
  }
  scan->at += length;
  return value;
}

gint64 kv_scan_whole(KvScan *scan, const char *field, gint64 min, gint64 max) {
  gboolean whole;
  kv_scan_peek(scan);
  if (scan->failed)
    return 0;
  /* Up to nine digits need no library. */
  const char *c = scan->at;
  gint64 quick = 0;
  for (; c - scan->at < 9 && g_ascii_isdigit(*c); c++)
    quick = quick * 10 + (*c - '0');
  if (c > scan->at && (*scan->at != '0' || c == scan->at + 1) && ends_number(*c) && quick >= min &&
      quick <= max) {
    scan->at = c;
    return quick;
  }
  gsize length = number_length(scan->at, &whole);
  if (length == 0) {
    kv_scan_fail(scan, field, "%s found, expected a whole number", found(scan));
    return 0;
  }
  double real = g_ascii_strtod(scan->at, NULL);
  if (!whole && real != floor(real)) {
    kv_scan_fail(scan, field, "%.*s found, expected a whole number", (int)MIN(length, 40),
                 scan->at);
    return 0;
  }
  gint64 value = whole ? g_ascii_strtoll(scan->at, NULL, 10) : 0;
  /* 2^63 as a double is the first that a gint64 cannot hold */
  if (real < (double)min || real > (double)max || fabs(real) >= 0x1p63 ||
      (whole && (value < min || value > max))) {
    kv_scan_fail(scan, field,
                 "%.*s found, expected a whole number from %" G_GINT64_FORMAT
                 " to %" G_GINT64_FORMAT,
                 (int)MIN(length, 40), scan->at, min, max);
    return 0;
  }
  scan->at += length;
  return whole ? value : (gint64)real;
}

guint32 kv_scan_tokens(KvScan *scan, const char *field) {
  return (guint32)kv_scan_whole(scan, field, 1, G_MAXINT32);
}

const char *kv_scan_string(KvScan *scan, const char *field, gsize *length) {
  *length = 0;
  if (kv_scan_peek(scan) != '"') {
    kv_scan_fail(scan, field, "%s found, expected a string", found(scan));
    return "";
  }
  const char *begin = scan->at + 1, *c = begin;
  for (; c < scan->end && *c != '"'; c++) {
    if ((guchar)*c < 0x20) {
      scan->at = c;
      kv_scan_fail(scan, field, "a control character stands in a string, expected an escape");
      return "";
    }
    if (*c == '\\' && c + 1 < scan->end)
      c++;
  }
  if (c >= scan->end) {
    kv_scan_fail(scan, field, "the record is cut off inside a string, expected a closing quote");
    return "";
  }
  *length = (gsize)(c - begin);
  scan->at = c + 1;
  return begin;
}

gint64 kv_trace_name_number(const char *text, gsize length) {
  guint64 h = length;
  for (gsize i = 0; i < length; i++)
    h = kv_random_mix(h ^ (guchar)text[i]);
  return (gint64)(h >> 1);
}

gint64 kv_scan_name(KvScan *scan, const char *field) {
  if (kv_scan_peek(scan) != '"')
    return kv_scan_whole(scan, field, 0, G_MAXINT64);
  gsize length;
  const char *text = kv_scan_string(scan, field, &length);
  return kv_trace_name_number(text, length);
}

/* An unsigned whole number of up to `max`, in the loop that most of a trace's bytes go through. */
static gboolean element(KvScan *scan, const char *field, guint64 max, guint64 *value) {
  const char *c = scan->at;
  guint64 v = 0;
  guint digit;
  for (; (digit = (guint)(guchar)*c - '0') <= 9; c++) {
    if (v > (max - digit) / 10)
      return kv_scan_fail(scan, field,
                          "a number is too large, expected whole numbers up to %" G_GUINT64_FORMAT,
                          max);
    v = v * 10 + digit;
  }
  if (c == scan->at || *c == '.' || *c == 'e' || *c == 'E')
    return kv_scan_fail(scan, field, "%s found, expected whole numbers",
                        c == scan->at ? found(scan) : "a fraction");
  scan->at = c;
  *value = v;
  return TRUE;
}

void kv_scan_array_u64(KvScan *scan, const char *field, GArray *into) {
  guint64 value;
  if (!kv_scan_open(scan, '[', field))
    return;
  for (guint count = 0; kv_scan_element(scan, &count, field);) {
    /* The elements as they are mostly written: up to 18 digits, a comma, a blank or none. */
    const char *c = scan->at;
    for (;;) {
      const char *begin = c;
      guint digit;
      value = 0;
      for (; (digit = (guint)(guchar)*c - '0') <= 9 && c - begin < 18; c++)
        value = value * 10 + digit;
      if (c == begin || *c != ',')
        break;
      g_array_append_val(into, value);
      c += c[1] == ' ' ? 2 : 1;
      scan->at = c;
    }
    kv_scan_peek(scan); /* further blanks */
    if (!element(scan, field, G_MAXUINT64, &value))
      return;
    g_array_append_val(into, value);
  }
}

void kv_scan_array_u32(KvScan *scan, const char *field, GArray *into) {
  guint64 value;
  if (!kv_scan_open(scan, '[', field))
    return;
  for (guint count = 0; kv_scan_element(scan, &count, field);) {
    if (!element(scan, field, G_MAXUINT32, &value))
      return;
    guint32 narrow = (guint32)value;
    g_array_append_val(into, narrow);
  }
}

static gboolean skip_word(KvScan *scan, const char *word) {
  gsize length = strlen(word);
  if (strncmp(scan->at, word, length) != 0)
    return FALSE;
  scan->at += length;
  return TRUE;
}

static void skip(KvScan *scan, const char *field, guint depth) {
  const char *key;
  gsize length;
  gboolean whole;
  guint count = 0;
  char c = kv_scan_peek(scan);
  if (scan->failed)
    return;
  if (depth > DEEPEST) {
    kv_scan_fail(scan, field, "nested deeper than %d, expected less", DEEPEST);
  } else if (c == '{') {
    scan->at++;
    while (kv_scan_member(scan, &count, &key, &length))
      skip(scan, field, depth + 1);
  } else if (c == '[') {
    scan->at++;
    while (kv_scan_element(scan, &count, field))
      skip(scan, field, depth + 1);
  } else if (c == '"') {
    kv_scan_string(scan, field, &length);
  } else if ((length = number_length(scan->at, &whole)) > 0) {
    scan->at += length;
  } else if (!skip_word(scan, "true") && !skip_word(scan, "false") && !skip_word(scan, "null")) {
    kv_scan_fail(scan, field, "%s found, expected a JSON value", found(scan));
  }
}

void kv_scan_skip(KvScan *scan, const char *field) {
  skip(scan, field, 0);
}

void kv_scan_finish(KvScan *scan) {
  if (kv_scan_peek(scan) != '\0' || (!scan->failed && scan->at < scan->end))
    kv_scan_fail(scan, NULL, "text follows the record's end, expected one JSON object a line");
}
