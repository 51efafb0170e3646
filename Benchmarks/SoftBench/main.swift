import SoftGuests
import VMCore

// How fast the soft engine is: SoftBench [PROGRAM...]
//
// By the processor time of this thread: what other work takes of the host counts for nothing.
// Runs each program at privilege level 0 in 64-bit mode with 2 MiB pages, and prints "PROGRAM MILLIONS_A_SECOND INSTRUCTIONS".

struct Failure: Error { var text: String }

/// A machine of 8 MiB whose code lies at 64 KiB.
func machine(_ code: [UInt8], rounds: UInt64) throws -> SoftEngine {
    let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 8 << 20))
    func put(_ value: UInt64, at address: UInt64) {
        memory.write((0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }, at: .init(address))
    }
    put(0x2003, at: 0x1000)
    put(0x3003, at: 0x2000)
    for i in 0..<4 as Range<UInt64> { put(i << 21 | 0x83, at: 0x3000 + 8 * i) }
    memory.write(code, at: .init(0x10000))
    var state = CPUState.reset()
    state.control.cr0 = 0x8000_0033
    state.control.cr3 = 0x1000
    state.control.cr4 = 0x20
    state.control.efer = 0x500
    let data = SegmentRegister(selector: 0x10, limit: .max, attributes: 0xC93)
    state.cs = SegmentRegister(selector: 8, limit: .max, attributes: 0xA9B)
    (state.ss, state.ds, state.es, state.fs, state.gs) = (data, data, data, data, data)
    state.general.rip = 0x10000
    state.general.rsp = 0x9000
    state.general.rdi = rounds
    let model = try CPUModel(named: "x86-64-v2", timestamps: .hide, supported: SoftEngine.supportedFeatures)
    let engine = try SoftEngine(memory: memory, model: model)
    try engine.setState(state)
    return engine
}

let wanted = Set(CommandLine.arguments.dropFirst())
var next = soft_first_program()
while let name = next.pointee.name.map({ String(cString: $0) }) {
    defer { next += 1 }
    guard wanted.isEmpty || wanted.contains(name) else { continue }
    let program = next.pointee
    guard let start = program.start, let end = program.end else { continue }
    let code = [UInt8](UnsafeBufferPointer(start: start, count: end - start))
    let engine = try machine(code, rounds: program.rounds)
    let began = threadTime()
    guard case .exit(let exit) = try engine.enter(until: .none), exit.identity.kind == .halt else {
        throw Failure(text: "\(name) did not halt")
    }
    let seconds = (threadTime() - began).seconds
    let count = Double(engine.retired?.rawValue ?? 0)
    print("\(name) \(Int(count / seconds / 1e6)) \(Int(count))")
}
