#include "trace_sqlite.h"
