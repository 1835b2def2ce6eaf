/* Azure LLM inference traces of 2023 and 2024: a date, a prompt length and an answer length a row.
 * Source: github.com/Azure/AzurePublicDataset. Dates carry up to seven digits of a second and, in
 * 2024, an offset from UTC; the first request is at 0. Lists of lengths in the same columns write
 * XXX for the date. */
#include "traces/csv_trace.h"
#include "traces/formats.h"

static gboolean recognise(const char *head, gsize length) {
  return kv_csv_recognise(head, length, "TIMESTAMP", "ContextTokens", "GeneratedTokens", NULL);
}

/* `digits` decimal digits of *text, which moves on; -1 if they are not there. */
static int take_digits(const char **text, int digits) {
  int value = 0;
  for (int i = 0; i < digits; i++, ++*text) {
    if (!g_ascii_isdigit(**text))
      return -1;
    value = value * 10 + (**text - '0');
  }
  return value;
}

static gboolean take_mark(const char **text, const char *marks) {
  for (; *marks; marks++)
    if (**text == *marks) {
      ++*text;
      return TRUE;
    }
  return FALSE;
}

/* Days from 2020-01-01 in the Gregorian calendar: whole years, leap days, then the days before the
 * month. */
static gint64 days_from_2020(int year, int month, int day) {
  static const int before[12] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
  gboolean leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  gint64 y = year - 1;
  return y * 365 + y / 4 - y / 100 + y / 400 - 737424 + before[month - 1] + (leap && month > 2) +
         day - 1;
}

/* "2023-11-16 18:15:46.6805900+00:00" as seconds from 2020, UTC: near enough for a double to hold
 * 100 ns. */
static gboolean parse_date(const char *c, double *seconds) {
  int year = take_digits(&c, 4);
  if (year < 1970 || !take_mark(&c, "-"))
    return FALSE;
  int month = take_digits(&c, 2);
  if (month < 1 || month > 12 || !take_mark(&c, "-"))
    return FALSE;
  int day = take_digits(&c, 2);
  if (day < 1 || day > 31 || !take_mark(&c, " T"))
    return FALSE;
  int hour = take_digits(&c, 2);
  if (hour < 0 || hour > 23 || !take_mark(&c, ":"))
    return FALSE;
  int minute = take_digits(&c, 2);
  if (minute < 0 || minute > 59 || !take_mark(&c, ":"))
    return FALSE;
  int second = take_digits(&c, 2);
  if (second < 0 || second > 60)
    return FALSE;
  double fraction = 0, unit = 1;
  if (take_mark(&c, "."))
    for (; g_ascii_isdigit(*c); c++)
      fraction += (*c - '0') * (unit /= 10);
  gint64 offset = 0;
  if (*c == '+' || *c == '-') {
    int sign = *c++ == '-' ? -1 : 1, h = take_digits(&c, 2);
    take_mark(&c, ":");
    int m = take_digits(&c, 2);
    if (h < 0 || h > 14 || m < 0 || m > 59)
      return FALSE;
    offset = sign * (h * 3600L + m * 60L);
  } else {
    take_mark(&c, "Z");
  }
  *seconds = (double)(days_from_2020(year, month, day) * 86400 + hour * 3600L + minute * 60L +
                      second - offset) +
             fraction;
  return *c == '\0';
}

static gboolean read_date(const KvCsv *csv, int column, double *seconds, GError **error) {
  return parse_date(csv->fields[column], seconds) ||
         kv_csv_fail(csv, column, "a date like 2023-11-16 18:15:46.6805900", error);
}

static const KvCsvShape shape = {.time = "TIMESTAMP",
                                 .input = "ContextTokens",
                                 .output = "GeneratedTokens",
                                 .read_time = read_date,
                                 .no_time = "XXX,"};

static gpointer create(KvTraceStream *stream, GError **error) {
  return kv_csv_trace_create(stream, &shape, error);
}

const KvTraceFormat kv_trace_azure = {
    .id = "azure",
    .description =
        "Azure LLM inference trace CSV, 2023 and 2024 (and lists of lengths with XXX for the time)",
    .example = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44",
    .recognise = recognise,
    .create = create,
    .next = kv_csv_trace_next,
    .destroy = kv_csv_trace_destroy,
    .timing = kv_csv_trace_timing,
    .block_tokens = kv_csv_trace_block_tokens,
};
