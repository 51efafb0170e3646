import Foundation
import Trace
import VMCore

// Records forever, for tests that kill it: `TraceHelper PATH [EVENTS-A-BURST [MICROSECONDS-BETWEEN]]`.
//
// Event n reads port n % 7 and gets n * 3; every 1000th event is a memory write of n % 5000 bytes. With TRACE_NOISE
// each seventh value is random; TRACE_FILE_LIMIT sets RLIMIT_FSIZE in bytes. A checkpoint follows
// every 20,000 events. Ends by itself with status 3 when the disk is full, having said what went wrong.

signal(SIGXFSZ, SIG_IGN)
let arguments = CommandLine.arguments
guard arguments.count >= 2 else { exit(64) }
let burst = arguments.count > 2 ? Int(arguments[2])! : 1000
let pause = arguments.count > 3 ? UInt32(arguments[3])! : 0
if let limit = ProcessInfo.processInfo.environment["TRACE_FILE_LIMIT"].flatMap({ UInt($0) }) {
    var value = rlimit(rlim_cur: limit, rlim_max: limit)
    setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &value)
}
let noise = ProcessInfo.processInfo.environment["TRACE_NOISE"] != nil
var bytes = [UInt8](repeating: 0, count: 5000)
var page = [UInt8](repeating: 0, count: 4096)

do {
    let writer = try TraceWriter(path: arguments[1], metadata: ["command": "TraceHelper"])
    FileHandle.standardOutput.write(Data("recording\n".utf8))
    do {
        var parent: CheckpointID?
        var random = SystemRandomNumberGenerator()
        while true {
            for _ in 0..<burst {
                let number = writer.events
                if number % 1000 == 999 {
                    bytes[Int(number % 5000)] &+= 1
                    try bytes.prefix(Int(number % 5000)).withUnsafeBytes {
                        try writer.append(EventIdentity(kind: .memoryWrite, address: number), bytes: $0)
                    }
                } else {
                    let value = noise && number % 7 == 6 ? random.next() : number * 3
                    try writer.append(EventIdentity(kind: .portRead, size: 8, address: number % 7), value: value)
                }
                if number % 20_000 == 0 {
                    page[Int(number / 20_000 % 4096)] &+= 1
                    parent = try writer.writeCheckpoint(
                        NewCheckpoint(
                            exit: writer.exits, parent: parent, cpu: Data(count: 100), devices: Data(count: 9))
                    ) { emit in try page.withUnsafeBytes { try emit(number / 20_000 % 64, $0.baseAddress!) } }
                }
            }
            if pause > 0 { usleep(pause) }
        }
    } catch {
        print(error)
        do { try writer.finish(meta: ["ending": "\(error)"]) } catch { print("finish: \(error)") }
        exit(3)
    }
} catch {
    print(error)
    exit(4)
}
