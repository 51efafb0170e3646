import Foundation
import Replay
import Trace
import VMCore

// How fast a timeline moves: TimelineBench restore TRACE PAGES [SECONDS] | seek TRACE COUNT
//
// restore: goes to and fro between two kept states that differ in about PAGES pages, and prints
//     restores a second, pages copied each, ioctl-bound time for one page less: "PAGES RATE MICROSECONDS"
// seek: goes to COUNT random exits, and prints the quantiles of the first half, which finds nothing in memory, and of all:
//     "COLD_P50 COLD_P95 P50 P95" in milliseconds

func timeline(_ path: String) throws -> Timeline {
    try Timeline(reader: TraceReader(path: path), host: .openKVM())
}

func restore(_ path: String, pages: Int, seconds: Double) throws {
    let timeline = try timeline(path)
    let start = timeline.first.next
    try timeline.seek(to: start)
    try timeline.keep()
    var end = start
    var copied = 0
    repeat {
        end = end.next
        try timeline.seek(to: end)
        try timeline.keep()
        let before = timeline.statistics.pagesCopied
        try timeline.seek(to: start)
        copied = timeline.statistics.pagesCopied - before
    } while copied < pages * 9 / 10 && end < timeline.last
    let before = timeline.statistics
    let began = hostTime()
    var count = 0
    repeat {
        try timeline.seek(to: count % 2 == 0 ? end : start)
        count += 1
    } while (hostTime() - began).seconds < seconds
    let took = (hostTime() - began).seconds
    let after = timeline.statistics
    precondition(after.exits == before.exits && after.restores - before.restores == count, "it was replayed, not restored")
    print((after.pagesCopied - before.pagesCopied) / count, Int(Double(count) / took), Int(took / Double(count) * 1e6))
}

func seek(_ path: String, count: Int) throws {
    let timeline = try timeline(path)
    var random = SeededGenerator(seed: 2026)
    var times: [Double] = []
    for _ in 0..<count {
        let exit = ExitNumber(UInt64.random(in: timeline.first.rawValue...timeline.last.rawValue, using: &random))
        let began = hostTime()
        try timeline.seek(to: exit)
        times.append((hostTime() - began).seconds * 1e3)
    }
    func quantile(_ times: some Collection<Double>, _ part: Double) -> String {
        let sorted = times.sorted()
        return String(format: "%.2f", sorted[min(sorted.count - 1, Int(Double(sorted.count) * part))])
    }
    let cold = times.prefix(count / 2)
    print(quantile(cold, 0.5), quantile(cold, 0.95), quantile(times, 0.5), quantile(times, 0.95))
    let work = timeline.statistics
    FileHandle.standardError.write(Data("""
        \(count) seeks: \(work.restores) states restored, \(work.checkpointsLoaded) checkpoints loaded, \(work.exits) exits \
        replayed\n
        """.utf8))
}

let arguments = CommandLine.arguments
switch (arguments.dropFirst().first, arguments.count) {
case ("restore", 4...5):
    try restore(arguments[2], pages: Int(arguments[3]) ?? 100, seconds: arguments.count > 4 ? Double(arguments[4]) ?? 2 : 2)
case ("seek", 4): try seek(arguments[2], count: Int(arguments[3]) ?? 200)
default:
    print("usage: TimelineBench restore TRACE PAGES [SECONDS] | seek TRACE COUNT")
    exit(64)
}
