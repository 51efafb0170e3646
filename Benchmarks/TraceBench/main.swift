import Foundation
import Trace
import VMCore

// Sizes and speeds of the trace format. Prints one line a measurement.

struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}

func port(_ number: UInt64, _ size: UInt8 = 1, write: Bool = false) -> EventIdentity {
    EventIdentity(kind: write ? .portWrite : .portRead, size: size, address: number)
}

/// Two status ports and a data port, mostly constant.
func poll(_ count: Int) -> [(EventIdentity, UInt64)] {
    var random = SplitMix(state: 1)
    return (0..<count).map { index in
        switch index % 3 {
        case 0: (port(0x3FD), random.next() % 16 == 0 ? 0x61 : 0x60)
        case 1: (port(0x1F7), random.next() % 32 == 0 ? UInt64(random.next() & 0xFF) : 0x50)
        default: (port(0x64), random.next() % 8 == 0 ? 0x1D : 0x1C)
        }
    }
}

/// TSC, PM timer, both halves of a PIT count, three RTC registers with their index writes.
func clocks(_ count: Int) -> [(EventIdentity, UInt64)] {
    var random = SplitMix(state: 2)
    var now: UInt64 = 5_000_000_000
    var events: [(EventIdentity, UInt64)] = []
    while events.count < count {
        func tick() { now += 17_000 + random.next() % 6_001 }
        tick()
        events.append((EventIdentity(kind: .timestamp, size: 8), now))
        tick()
        events.append((port(0x608, 4), now * 3_579_545 / 1_000_000_000 & 0xFF_FFFF))
        tick()
        let pit = 0xFFFF - (now * 1_193_182 / 1_000_000_000) % 0x10000
        events.append((port(0x43, write: true), 0))
        events.append((port(0x40), pit & 0xFF))
        events.append((port(0x40), pit >> 8))
        for (register, unit) in [(UInt64(0), UInt64(1)), (2, 60), (4, 3600)] {
            events.append((port(0x70, write: true), register))
            events.append((port(0x71), now / 1_000_000_000 / unit % 60))
        }
    }
    return events
}

/// The same without writes and with fewer quiet registers: the hardest reading of "clocks".
func bareClocks(_ count: Int) -> [(EventIdentity, UInt64)] {
    clocks(3 * count).filter { $0.0.kind != .portWrite && $0.0.address != 0x71 }.prefix(count).map { $0 }
}

let path = NSTemporaryDirectory() + "vmrr-bench-\(getpid()).vmrr"
func seconds(_ body: () throws -> Void) rethrows -> Double {
    let start = DispatchTime.now().uptimeNanoseconds
    try body()
    return Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9
}

func measure(_ name: String, _ events: [(EventIdentity, UInt64)]) throws {
    let writer = try TraceWriter(path: path, options: .init(overwrite: true))
    let first = events.prefix(60_000)
    let append = try seconds { for (identity, value) in first { try writer.append(identity, value: value) } }
    let rest = try seconds {
        for (identity, value) in events.dropFirst(first.count) { try writer.append(identity, value: value) }
        try writer.flush()
    }
    try writer.finish()
    let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as! Int
    let reader = try TraceReader(path: path)
    var sum: UInt64 = 0
    let read = try seconds {
        var cursor = reader.cursor()
        while let event = try cursor.next() { sum &+= event.value }
    }
    let expected = events.reduce(0) { $0 &+ $1.1 }
    precondition(sum == expected)
    print(
        "\(name): \(events.count) events, \(size) bytes, \(Double(size) / Double(events.count)) a event;"
            + " append \(append * 1e9 / Double(first.count)) ns;"
            + " write \(Double(events.count - first.count) / rest / 1e6) M/s;"
            + " read \(Double(events.count) / read / 1e6) M/s")
}

for count in [50_000, 4_000_000] {
    try measure("poll", poll(count))
    try measure("clocks", clocks(count))
    try measure("bare clocks", bareClocks(count))
}

// Checkpoints: 64 MiB, a third zero, a third text-like, a third noise; then a hundred of 1000 dirtied pages.
do {
    var random = SplitMix(state: 3)
    let pages = 16_384
    let memory = UnsafeMutableRawPointer.allocate(byteCount: pages * 4096, alignment: 4096)
    let words = memory.bindMemory(to: UInt64.self, capacity: pages * 512)
    for index in 0..<(pages * 512) {
        words[index] = index / 512 % 3 == 0 ? 0 : index / 512 % 3 == 1 ? random.next() & 0x0F0F_0003 : random.next()
    }
    let writer = try TraceWriter(path: path, options: .init(overwrite: true))
    var id: CheckpointID?
    let full = try seconds {
        id = try writer.writeCheckpoint(
            .init(exit: .start, cpu: Data(count: 2000), devices: Data(count: 5000))
        ) { emit in
            for page in 0..<pages { try emit(UInt64(page), memory + page * 4096) }
        }
    }
    let more = try seconds {
        for _ in 0..<100 {
            let first = Int(random.next() % 15_000)
            for page in first..<(first + 1000) { words[page * 512 + 7] = random.next() }
            id = try writer.writeCheckpoint(
                .init(exit: .start, parent: id, cpu: Data(count: 2000), devices: Data(count: 5000))
            ) { emit in for page in first..<(first + 1000) { try emit(UInt64(page), memory + page * 4096) } }
        }
    }
    try writer.finish()
    let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as! Int
    let reader = try TraceReader(path: path)
    var loaded = 0
    let load = try seconds { try reader.loadPages(id!, pageLimit: UInt64(pages)) { _, _ in loaded += 1 } }
    print(
        "checkpoints: complete \(pages) pages in \(full * 1e3) ms; 1000 pages in \(more * 10) ms each;"
            + " file \(size >> 20) MiB; load \(loaded) pages of a chain of 101 in \(load * 1e3) ms")
}
unlink(path)
