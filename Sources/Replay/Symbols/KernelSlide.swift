import Trace
import VMCore

/// How far from where it was linked a Linux kernel runs: KASLR moves it at each boot.
public enum KernelSlide {
    /// What SYSCALL enters: the kernel puts its address into IA32_LSTAR when it sets up the processor.
    private static let entry = "entry_SYSCALL_64"
    /// Source: Linux, arch/x86/Kconfig, PHYSICAL_ALIGN; arch/x86/include/asm/page_64_types.h, KERNEL_IMAGE_SIZE.
    private static let alignment: UInt64 = 2 << 20
    private static let range: UInt64 = 1 << 30

    /// Whether the symbols are of a kernel that may have moved.
    public static func concerns(_ table: SymbolTable) -> Bool { table[entry] != nil }

    /// How far the kernel lies from `table`, at the checkpoint that is the last at or before `exit` at which it has set up
    /// its processor, or else the first after it; nil where there is none.
    ///
    /// - Throws: `SymbolError` where the trace runs another kernel.
    public static func find(in reader: TraceReader, of table: SymbolTable, near exit: ExitNumber?) throws -> UInt64? {
        let all = Timeline.restorable(reader.checkpoints)
        let before = all.prefix { exit == nil || $0.exit <= exit! }
        for checkpoint in before.reversed() + all.dropFirst(before.count) {
            let stored = try reader.state(of: checkpoint.id)
            guard let state = CPUState(encoded: Array(stored.cpu)), let slide = try slide(of: state, table) else { continue }
            return slide
        }
        return nil
    }

    /// Nil where this state says nothing of it.
    static func slide(of state: CPUState, _ table: SymbolTable) throws(SymbolError) -> UInt64? {
        guard let linked = table[entry]?.address, let index = CPUState.msrIndices.firstIndex(of: 0xC000_0082),
            state.msrs[index] != 0
        else { return nil }
        let slide = state.msrs[index] &- linked
        guard slide % alignment == 0, slide < range else {
            throw SymbolError("the trace runs another kernel: its \(entry) lies at \(hex(state.msrs[index])), which isn't "
                + "where this one's at \(hex(linked)) can have been moved to")
        }
        return slide
    }
}

extension SymbolTable {
    /// The same symbols, moved.
    public func moved(by slide: UInt64) -> [Symbol] {
        symbols.map { Symbol(name: $0.name, address: $0.address &+ slide, size: $0.size) }
    }
}
