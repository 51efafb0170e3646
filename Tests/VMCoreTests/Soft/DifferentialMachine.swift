import DifferentialGuest
import VMCore

/// What a case is made of, and what came of it: bytes as the guest of DifferentialLayout.h has them.
struct DifferentialRecord: Equatable {
    var bytes: [UInt8]

    init() { bytes = [UInt8](repeating: 0, count: Int(CASE_OUT)) }
    init(_ bytes: [UInt8]) { self.bytes = bytes }

    subscript<T: FixedWidthInteger>(offset: Int, type: T.Type) -> T {
        get { (0..<MemoryLayout<T>.size).reduce(0) { $0 | T(truncatingIfNeeded: bytes[offset + $1]) << T(8 * $1) } }
        set { for i in 0..<MemoryLayout<T>.size { bytes[offset + i] = UInt8(truncatingIfNeeded: newValue >> T(8 * i)) } }
    }

    func register(_ number: Int) -> UInt64 { self[Int(CASE_REGISTERS) + 8 * number, UInt64.self] }
    mutating func setRegister(_ number: Int, _ value: UInt64) { self[Int(CASE_REGISTERS) + 8 * number, UInt64.self] = value }
    var vector: UInt64 { self[Int(CASE_CODE), UInt64.self] }
}

/// The guest of the differential tests in one engine.
final class DifferentialMachine {
    enum Mode: String, CaseIterable {
        case long64 = "64-bit"
        case compatibility32 = "32-bit compatibility"
    }

    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// Cases of one entry into the guest.
    static let batch = 2000
    /// Bytes of a case's code, the jump back included.
    static let slot = 64

    let engine: any Engine
    /// Whether cases use YMM registers, and whether the guest has to enable them for that.
    private let hasAVX: Bool
    private let enablesAVX: Bool
    /// CR0.AM: whether a case's AC flag makes alignment checks.
    var masksAlignment = true

    static func memory() throws -> GuestMemory { try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 16 << 20)) }

    init(_ engine: any Engine, hasAVX: Bool, enablesAVX: Bool) {
        self.engine = engine
        self.hasAVX = hasAVX
        self.enablesAVX = enablesAVX
        load()
    }

    private func write(_ bytes: [UInt8], at address: Int32) {
        precondition(engine.memory.write(bytes, at: .init(UInt64(address))))
    }

    private func words(_ values: [UInt64]) -> [UInt8] { values.flatMap { v in (0..<8).map { UInt8(truncatingIfNeeded: v >> (8 * $0)) } } }

    /// Page tables, descriptor tables, the kernel and the drivers.
    private func load() {
        let tables = UInt64(DIFF_PML4)
        func page(_ entry: UInt64) -> [UInt8] { words([entry] + [UInt64](repeating: 0, count: 511)) }
        write(page(tables + 0x1000 | 7), at: DIFF_PML4)
        write(page(tables + 0x2000 | 7), at: DIFF_PML4 + 0x1000)
        write(words((0..<8).map { tables + 0x3000 + 0x1000 * $0 | 7 } + [UInt64](repeating: 0, count: 504)), at: DIFF_PML4 + 0x2000)
        // Accessed and dirty from the beginning, so that no engine has to set them.
        let pages = (0..<4096 as Range<UInt64>).map { number -> UInt64 in
            let address = number << 12
            switch address {
            case ..<UInt64(DIFF_USER): return address | 0x63
            case UInt64(DIFF_DATA) - 0x1000, UInt64(DIFF_DATA) + 0x1000: return 0
            case 0xA0000..<0xC0000: return 0  // no RAM
            case UInt64(DIFF_READ_ONLY), UInt64(DIFF_USER)..<UInt64(DIFF_VARIABLES), UInt64(DIFF_CODE)...: return address | 0x65
            default: return address | 0x67
            }
        }
        write(words(pages), at: DIFF_PML4 + 0x3000)
        write(words((0..<256).flatMap { vector -> [UInt64] in
            let target = UInt64(DIFF_KERNEL) + 16 * UInt64(vector)
            return [target & 0xFFFF | 0x08 << 16 | 0xEE00 << 32 | (target >> 16) << 48, 0]
        }), at: DIFF_IDT)
        let tss = UInt64(DIFF_TSS)
        write(words([
            0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x2067 | tss << 16 | 0x8900 << 32, 0,
            0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00CF_FB00_0000_FFFF,
        ]), at: DIFF_GDT)
        write([UInt8](repeating: 0, count: 0x2068), at: DIFF_TSS)
        write(words([UInt64(DIFF_KERNEL_STACK)]), at: DIFF_TSS + 4)
        write([104, 0], at: DIFF_TSS + 102)
        func copy(_ image: differential_image, at address: Int32) {
            write([UInt8](UnsafeBufferPointer(start: image.start, count: image.end - image.start)), at: address)
        }
        copy(differential_kernel(), at: DIFF_KERNEL)
        copy(differential_user(), at: DIFF_USER)
    }

    private func state(_ mode: Mode) -> CPUState {
        var state = CPUState.reset()
        let data = SegmentRegister(selector: 0x33, limit: .max, attributes: 0xCF3)
        state.cs = SegmentRegister(selector: mode == .long64 ? 0x2B : 0x3B, limit: .max,
                                   attributes: mode == .long64 ? 0xAFB : 0xCFB)
        state.ss = data
        state.ds = data
        state.es = data
        state.fs = data
        state.gs = data
        state.tr = SegmentRegister(selector: 0x18, base: UInt64(DIFF_TSS), limit: 0x2067, attributes: 0x8B)
        state.ldtr = SegmentRegister(attributes: SegmentRegister.unusable)
        state.gdtr = DescriptorTable(base: UInt64(DIFF_GDT), limit: 63)
        state.idtr = DescriptorTable(base: UInt64(DIFF_IDT), limit: 4095)
        state.control.cr0 = 0x8001_0033 | (masksAlignment ? 1 << 18 : 0)
        state.control.cr3 = UInt64(DIFF_PML4)
        state.control.cr4 = 0x620 | (enablesAVX ? 1 << 18 : 0)
        state.control.efer = 0xD01
        state.control.xcr0 = enablesAVX ? 7 : 1
        state.general.rflags = 2
        state.general.rip = UInt64(DIFF_USER)
            + UInt64(mode == .long64 ? differential_driver64_offset() : differential_driver32_offset())
        return state
    }

    /// Where a case's code begins.
    static func code(_ index: Int) -> UInt64 { UInt64(DIFF_CODE) + UInt64(index * slot) }

    /// Runs cases, at most `batch` of them; says what came of each.
    func run(_ cases: [DifferentialCase], _ mode: Mode, within limit: Nanoseconds = .seconds(20)) throws -> [DifferentialRecord] {
        let after = UInt64(DIFF_USER) + UInt64(mode == .long64 ? differential_after64_offset() : differential_after32_offset())
        var records: [UInt8] = [], code: [UInt8] = []
        for (i, one) in cases.enumerated() {
            var record = one.input
            record[Int(CASE_CODE), UInt64.self] = Self.code(i)
            records += record.bytes + [UInt8](repeating: 0, count: Int(CASE_BYTES - CASE_OUT))
            let distance = after &- (Self.code(i) + UInt64(one.code.count) + 5)
            var slot = one.code + [0xE9] + words([distance]).prefix(4)
            slot += [UInt8](repeating: 0xCC, count: Self.slot - slot.count)
            code += slot
        }
        write([UInt8](repeating: 0, count: pageSize), at: DIFF_DATA)
        write(records, at: DIFF_CASES)
        write(code, at: DIFF_CODE)
        let first = UInt64(DIFF_CASES)
        var variables = [UInt64](repeating: 0, count: 16)
        variables[0] = first
        variables[1] = first + UInt64(cases.count) * UInt64(CASE_BYTES)
        variables[Int(VAR_RESUME) / 8] = after
        variables[Int(VAR_FPU) / 8] = hasAVX && mode == .long64 ? 1 : 0
        write(words(variables), at: DIFF_VARIABLES)
        try engine.setState(state(mode))
        engine.armKick(at: hostTime() + limit)
        let arrival = try engine.enter(until: .none)
        guard case .exit(let exit) = arrival, exit.identity == EventIdentity(kind: .portWrite, size: 1, address: 0xF4) else {
            let current = engine.memory.load(.init(UInt64(DIFF_VARIABLES)), as: UInt64.self) ?? 0
            let index = Int(current - first) / Int(CASE_BYTES)
            let text = index < cases.count ? cases[index].description : "the end"
            throw Failure(description: "\(engine.name) came back with \(arrival) at case \(index): \(text)")
        }
        try engine.answer(exit)
        return (0..<cases.count).map { i in
            let address = first + UInt64(i) * UInt64(CASE_BYTES) + UInt64(CASE_OUT)
            return DifferentialRecord(engine.memory.read(.init(address), count: Int(CASE_OUT)) ?? [])
        }
    }
}
